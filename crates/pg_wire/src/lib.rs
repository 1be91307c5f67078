#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod client;
pub mod framed;
pub mod postgres_backend;
pub mod pq_proto;
pub mod read;
pub mod replication;
pub mod socket;

pub use client::{Client, ClientError, ConnectParams, CopyBoth, Endpoint};
pub use framed::{ConnectionError, Framed, FramedReader, FramedWriter};
pub use postgres_backend::{
    AuthType, CopyStreamEnd, Handler, PostgresBackend, PostgresBackendReader, QueryError,
};
pub use pq_proto::{BeMessage, FeMessage, FeStartupPacket, ProtocolError, StartupParams};
