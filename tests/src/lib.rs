//! System tests: real processes, real WAL
