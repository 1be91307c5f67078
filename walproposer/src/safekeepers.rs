//! Whom a walproposer is connected to: the addresses it was given, and from the first membership configuration on
//! the members, wherever they are.

use pg_wire::client::{ConnectParams, Endpoint};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use wal_consensus::limits::SAFEKEEPERS_MAX;
use wal_consensus::membership::MembershipConf;
use wal_consensus::proposer::SkId;

use crate::config::{Config, ConfigError};
use crate::link::{Event, keep_connected, safekeeper_params};

/// Numbers of the connections of one place begin this far apart, so that none comes twice when the place is given to
/// another safekeeper.
const CONNECTIONS_PER_TENANCY: u64 = 1 << 32;

#[derive(Debug)]
struct Place {
    params: ConnectParams,
    /// `None` once it was given up; the place may be taken by another one.
    connecting: Option<AbortHandle>,
}

/// Connections to safekeepers, each kept up by a task; they end with this value.
#[derive(Debug)]
pub(crate) struct Safekeepers {
    config: Config,
    places: Vec<Place>,
    events: mpsc::Sender<Event>,
    tasks: JoinSet<()>,
    tenancies: u64,
}

impl Safekeepers {
    /// Connects to the addresses of the configuration.
    ///
    /// # Errors
    /// When the configuration is wrong.
    pub(crate) fn connect(
        config: &Config,
        events: mpsc::Sender<Event>,
    ) -> Result<Safekeepers, ConfigError> {
        let mut safekeepers = Safekeepers {
            config: config.clone(),
            places: Vec::new(),
            events,
            tasks: JoinSet::new(),
            tenancies: 0,
        };
        for endpoint in config.endpoints()? {
            safekeepers.add(endpoint);
        }
        Ok(safekeepers)
    }

    /// Places, those that were given up included.
    pub(crate) fn count(&self) -> usize {
        self.places.len()
    }

    /// How to connect to one.
    pub(crate) fn get(&self, sk: SkId) -> Option<&ConnectParams> {
        self.places.get(sk.0).map(|place| &place.params)
    }

    /// Connects to members that are not connected to yet, and gives up who is no member any more; the latter are
    /// returned.
    pub(crate) fn follow(&mut self, mconf: &MembershipConf) -> Vec<SkId> {
        let mut members: Vec<Endpoint> = Vec::new();
        for member in mconf.all_members() {
            let endpoint = Endpoint::Tcp { host: member.host.clone(), port: member.pg_port };
            if !members.contains(&endpoint) {
                members.push(endpoint);
            }
        }
        let mut gone = Vec::new();
        for (index, place) in self.places.iter_mut().enumerate() {
            if !members.contains(place.params.endpoint())
                && let Some(task) = place.connecting.take()
            {
                tracing::info!(safekeeper = %place.params.endpoint(), "is no member any more");
                task.abort();
                gone.push(SkId(index));
            }
        }
        for endpoint in members {
            let known =
                |place: &Place| place.connecting.is_some() && *place.params.endpoint() == endpoint;
            if !self.places.iter().any(known) {
                tracing::info!(safekeeper = %endpoint, "is a member");
                self.add(endpoint);
            }
        }
        gone
    }

    fn add(&mut self, endpoint: Endpoint) {
        let vacant = self.places.iter().position(|place| place.connecting.is_none());
        let index = vacant.unwrap_or(self.places.len());
        if SAFEKEEPERS_MAX <= index {
            // Two full sets of members fit; more than that is no configuration.
            tracing::error!(safekeeper = %endpoint, "one safekeeper too many");
            return;
        }
        let params = safekeeper_params(&self.config, &endpoint);
        let first = self.tenancies * CONNECTIONS_PER_TENANCY;
        self.tenancies += 1;
        let (version, events) = (self.config.protocol_version, self.events.clone());
        let task = keep_connected(SkId(index), first, params.clone(), version, events);
        let place = Place { params, connecting: Some(self.tasks.spawn(task)) };
        match self.places.get_mut(index) {
            Some(vacant) => *vacant = place,
            None => self.places.push(place),
        }
    }
}

#[cfg(test)]
mod tests {
    use pg_types::{Generation, NodeId, TenantId, TimelineId};
    use wal_consensus::membership::Member;

    use super::*;

    fn conf(ports: &[u16]) -> MembershipConf {
        let member = |&pg_port: &u16| Member {
            id: NodeId(pg_port.into()),
            host: "127.0.0.1".to_owned(),
            pg_port,
        };
        let members = ports.iter().map(member).collect();
        MembershipConf { generation: Generation(1), members, new_members: None }
    }

    #[tokio::test]
    async fn members_are_followed_and_places_used_again() {
        let config = Config {
            tenant_id: TenantId([1; 16]),
            timeline_id: TimelineId([2; 16]),
            safekeepers: vec!["127.0.0.1:1".to_owned(), "127.0.0.1:2".to_owned()],
            mconf: MembershipConf::default(),
            auth_token: None,
            protocol_version: Default::default(),
            compute: None,
        };
        let (events, _kept) = mpsc::channel(1);
        let mut safekeepers = Safekeepers::connect(&config, events).unwrap();
        let ports = |safekeepers: &Safekeepers| -> Vec<String> {
            let connected = safekeepers.places.iter().filter(|place| place.connecting.is_some());
            connected.map(|place| place.params.endpoint().to_string()).collect()
        };
        assert_eq!(safekeepers.follow(&conf(&[1, 2])), []);
        assert_eq!(safekeepers.follow(&conf(&[1, 2, 3])), []);
        assert_eq!(safekeepers.count(), 3);
        assert_eq!(safekeepers.follow(&conf(&[1, 3])), [SkId(1)]);
        assert_eq!(safekeepers.follow(&conf(&[1, 3, 4])), []);
        assert_eq!(ports(&safekeepers), ["127.0.0.1:1", "127.0.0.1:4", "127.0.0.1:3"]);
        assert_eq!(safekeepers.count(), 3);
    }
}
