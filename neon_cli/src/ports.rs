//! Choosing TCP ports.

use std::net::{Ipv4Addr, TcpListener};

use crate::error::{CliError, Result};

/// Where ports are looked for: below the range from which systems take ports for outgoing connections, which
/// would be free now and taken at the next start.
const RANGE: std::ops::Range<u16> = 20_000..32_000;
/// Ports that are tried before giving up.
const ATTEMPTS_MAX: usize = 10_000;

/// Ports on the loopback address that are free now. They are all held until the last one is found, so that
/// they differ.
pub fn free_ports(count: usize) -> Result<Vec<u16>> {
    let mut held = Vec::new();
    for _ in 0..ATTEMPTS_MAX {
        if held.len() == count {
            return Ok(held.into_iter().map(|(port, _)| port).collect());
        }
        let port = rand::random_range(RANGE);
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            held.push((port, listener));
        }
    }
    Err(CliError::failed(format!(
        "could not find {count} free ports between {} and {}",
        RANGE.start, RANGE.end
    )))
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
