//! Choosing TCP ports.

use std::net::{Ipv4Addr, TcpListener};

use crate::error::{CliError, Result};

/// Ports on the loopback address that are free now. They are all held until the last one is found, so that
/// they differ.
pub fn free_ports(count: usize) -> Result<Vec<u16>> {
    let listeners = (0..count)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .collect::<std::io::Result<Vec<_>>>();
    listeners
        .and_then(|all| all.iter().map(|listener| Ok(listener.local_addr()?.port())).collect())
        .map_err(|error| CliError::failed(format!("could not find free ports: {error}")))
}

/// Checks that nothing listens on a port.
pub fn check_free(port: u16, what: &str) -> Result<()> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
        Ok(_) => Ok(()),
        Err(error) => Err(CliError::conflict(format!(
            "port {port}, which is the {what}'s, cannot be used: {error}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_ports_differ_and_a_taken_one_is_named() {
        let ports = free_ports(3).unwrap();
        assert!(ports[0] != ports[1] && ports[1] != ports[2] && ports[0] != ports[2]);
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = check_free(port, "page server").unwrap_err();
        assert_eq!(error.kind, crate::error::Kind::Conflict);
        assert!(error.message.contains(&port.to_string()), "{error}");
    }
}
