//! Proposer and acceptor of the WAL quorum as pure state machines, with their wire codec
