//! Walproposer: streams a compute's WAL to the safekeepers and reports the quorum back
