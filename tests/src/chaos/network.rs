//! A network of its own for a campaign, in which packets can be made to disappear.
//!
//! A namespace belongs to threads: the one that enters it, and those and the processes that it starts. The machine's own
//! network is never touched, and nothing is left when the last of them has ended. All traffic passes the loopback
//! interface; what is cut off is redirected there, on arrival, into an interface that leads nowhere. So nobody gets an
//! error or a reset: both ends retransmit until they lose patience, or are connected again.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

/// Interface that leads nowhere.
const SINK: &str = "sink";

/// The namespace that this thread is in.
#[derive(Debug)]
pub struct Network {
    last_cut: u16,
}

/// Packets that disappear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packets {
    /// From and to a port.
    Of(u16),
    /// The first packet of each connection to a port.
    NewConnectionsTo(u16),
}

/// A cut that lasts until it is healed.
#[derive(Debug)]
#[must_use = "lasts until it is healed"]
pub struct Cut {
    /// Number of its filters.
    priority: u16,
}

impl Network {
    /// Moves this thread into a network namespace of its own. Where the kernel does not allow that, says so and leaves
    /// everything as it is.
    pub fn enter() -> Result<Option<Network>> {
        match unshare(CloneFlags::CLONE_NEWNET) {
            Ok(()) => {}
            Err(error @ (Errno::EPERM | Errno::ENOSYS | Errno::EINVAL)) => {
                println!(
                    "no network is cut: the kernel refuses a network namespace ({error}); root can have one"
                );
                return Ok(None);
            }
            Err(error) => bail!("could not make a network namespace: {error}"),
        }
        run("ip", "link set lo up")?;
        run("ip", &format!("link add {SINK} type veth peer name {SINK}-end"))?;
        run("ip", &format!("link set {SINK}-end up"))?;
        run("ip", &format!("link set {SINK} up"))?;
        run("tc", "qdisc add dev lo clsact")?;
        Ok(Some(Network { last_cut: 0 }))
    }

    /// Begins a cut of nothing.
    pub fn begin_cut(&mut self) -> Cut {
        self.last_cut += 1;
        Cut { priority: self.last_cut }
    }

    /// Adds to a cut.
    pub fn add(&self, cut: &Cut, packets: Packets) -> Result<()> {
        packets.matches().iter().try_for_each(|matched| {
            let filter = format!(
                "filter add dev lo ingress protocol ip prio {} u32 match ip protocol 6 0xff {matched} \
                 action mirred egress redirect dev {SINK}",
                cut.priority
            );
            run("tc", &filter)
        })
    }

    /// Ends a cut.
    pub fn heal(&self, cut: &Cut) -> Result<()> {
        run("tc", &format!("filter del dev lo ingress prio {}", cut.priority))
    }

    /// Packets that have disappeared so far.
    pub fn disappeared(&self) -> Result<u64> {
        let output = output("ip", &format!("-j -s link show {SINK}"))?;
        let links: serde_json::Value = serde_json::from_str(&output)?;
        links[0]["stats64"]["tx"]["packets"].as_u64().context("an interface without counters")
    }
}

impl Packets {
    /// Conditions in the words of tc-u32(8).
    fn matches(self) -> Vec<String> {
        match self {
            Packets::Of(port) => {
                ["sport", "dport"].map(|end| format!("match ip {end} {port} 0xffff")).to_vec()
            }
            // SYN without ACK, in the flags of a TCP header behind an IP header of 20 bytes, as on a loopback.
            Packets::NewConnectionsTo(port) => {
                vec![format!("match ip dport {port} 0xffff match u8 0x02 0x12 at 33")]
            }
        }
    }
}

/// Local ports of a process's TCP sockets over IPv4.
pub fn local_ports(pid: u32) -> Result<BTreeSet<u16>> {
    let mut inodes = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // A descriptor may be closed meanwhile.
        let Ok(target) = fs::read_link(entry?.path()) else { continue };
        let target = target.to_string_lossy();
        if let Some(inode) = target.strip_prefix("socket:[").and_then(|t| t.strip_suffix(']')) {
            inodes.insert(inode.to_owned());
        }
    }
    Ok(ports_in(&fs::read_to_string(format!("/proc/{pid}/net/tcp"))?, &inodes))
}

/// Local ports of the lines of `/proc/PID/net/tcp` (proc_net_tcp(5)) with one of these inodes.
fn ports_in(table: &str, inodes: &BTreeSet<String>) -> BTreeSet<u16> {
    let port = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, port) = fields.get(1)?.split_once(':')?;
        inodes.contains(*fields.get(9)?).then(|| u16::from_str_radix(port, 16).ok())?
    };
    table.lines().filter_map(port).collect()
}

fn run(program: &str, args: &str) -> Result<()> {
    output(program, args).map(drop)
}

fn output(program: &str, args: &str) -> Result<String> {
    let output =
        Command::new(program).args(args.split_whitespace()).output().with_context(|| {
            format!("could not run `{program}`: on Debian it is in the package iproute2")
        })?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("`{program} {args}` failed: {}", text.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    #[test]
    fn reads_the_kernel_s_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
   0: 0100007F:4E21 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0000\n\
   1: 0100007F:C350 0100007F:4E21 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0000\n\
   nonsense\n";
        let inodes = |list: &[&str]| list.iter().map(|inode| (*inode).to_owned()).collect();
        assert_eq!(ports_in(table, &inodes(&["4711", "9"])), BTreeSet::from([20001]));
        assert_eq!(ports_in(table, &inodes(&["4712", "4711"])), BTreeSet::from([20001, 50000]));
    }

    #[test]
    fn knows_the_sockets_of_this_process() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(local_ports(std::process::id()).unwrap().contains(&port));
    }

    #[test]
    fn a_cut_is_silent_and_heals() {
        // A thread of its own: nobody comes back from a namespace.
        std::thread::spawn(|| {
            let Some(mut network) = Network::enter().unwrap() else { return };
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            let before = network.disappeared().unwrap();
            let cut = network.begin_cut();
            network.add(&cut, Packets::Of(port)).unwrap();
            client.write_all(b"lost, then not").unwrap();
            let soon = Duration::from_millis(300);
            server.set_read_timeout(Some(soon)).unwrap();
            let mut bytes = [0; 14];
            let error = server.read(&mut bytes).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "{error}");
            let address = listener.local_addr().unwrap();
            let error = TcpStream::connect_timeout(&address, soon).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "{error}");
            assert!(network.disappeared().unwrap() > before);
            network.heal(&cut).unwrap();
            server.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            server.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"lost, then not");
            let cut = network.begin_cut();
            network.add(&cut, Packets::NewConnectionsTo(port)).unwrap();
            client.write_all(b"the old one is").unwrap();
            server.read_exact(&mut bytes).unwrap();
            assert!(TcpStream::connect_timeout(&address, soon).is_err());
            network.heal(&cut).unwrap();
            TcpStream::connect(address).unwrap();
        })
        .join()
        .unwrap();
    }
}
