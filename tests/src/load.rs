//! Clients that work until they are stopped, and what all kinds of them have in common.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use postgres::Client;

use crate::cluster::{Endpoint, wait_until};

/// Pause before a client that found no server tries again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(20);

/// Locks what other clients may have left by a panic: everything under these locks is changed in single steps.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Acknowledged commits of all clients, as they come, and the errors in between.
#[derive(Debug)]
pub struct Meter {
    state: Mutex<MeterState>,
}

#[derive(Debug)]
struct MeterState {
    acknowledged: u64,
    last: Instant,
    longest_stall: Duration,
    errors: BTreeMap<String, u64>,
}

impl Default for Meter {
    fn default() -> Meter {
        let state = MeterState {
            acknowledged: 0,
            last: Instant::now(),
            longest_stall: Duration::ZERO,
            errors: BTreeMap::new(),
        };
        Meter { state: Mutex::new(state) }
    }
}

impl Meter {
    /// One more acknowledged commit.
    pub fn acknowledge(&self) {
        let mut state = lock(&self.state);
        let now = Instant::now();
        state.longest_stall = state.longest_stall.max(now - state.last);
        state.last = now;
        state.acknowledged += 1;
    }

    /// So many so far.
    pub fn acknowledged(&self) -> u64 {
        lock(&self.state).acknowledged
    }

    /// The longest time without an acknowledged commit.
    pub fn longest_stall(&self) -> Duration {
        lock(&self.state).longest_stall
    }

    /// Errors that the server has sent, by SQLSTATE.
    pub fn errors(&self) -> BTreeMap<String, u64> {
        lock(&self.state).errors.clone()
    }
}

/// Threads that work until they are told to end.
#[derive(Debug)]
pub struct Clients {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    /// Starts `count` threads. Each has its number and a connection, made anew whenever it is lost, on which `act` does
    /// one thing after the other. An error that the server has sent ends that one thing only.
    pub fn start<F>(endpoint: &Endpoint, count: u32, meter: &Arc<Meter>, act: F) -> Clients
    where
        F: FnMut(u32, &mut Client) -> Result<(), postgres::Error> + Clone + Send + 'static,
    {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..count)
            .map(|number| {
                let (endpoint, stop) = (endpoint.clone(), Arc::clone(&stop));
                let (meter, mut act) = (Arc::clone(meter), act.clone());
                std::thread::spawn(move || {
                    client(&endpoint, &stop, &meter, |client| act(number, client));
                })
            })
            .collect();
        Clients { stop, threads }
    }

    /// Stops the threads and waits for them.
    pub fn finish(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        // One that hangs is a finding, not a reason to hang with it.
        wait_until("every client has an answer to its last question", || {
            Ok(self.threads.iter().all(JoinHandle::is_finished))
        })?;
        let panicked = self.threads.into_iter().filter_map(|thread| thread.join().err()).count();
        ensure!(panicked == 0, "{panicked} clients panicked");
        Ok(())
    }
}

fn client(
    endpoint: &Endpoint,
    stop: &AtomicBool,
    meter: &Meter,
    mut act: impl FnMut(&mut Client) -> Result<(), postgres::Error>,
) {
    let mut connection: Option<Client> = None;
    while !stop.load(Ordering::Relaxed) {
        let Some(client) = &mut connection else {
            connection = endpoint.connect("postgres").ok();
            if connection.is_none() {
                std::thread::sleep(RECONNECT_PAUSE);
            }
            continue;
        };
        let Err(error) = act(client) else { continue };
        if let Some(code) = error.code() {
            *lock(&meter.state).errors.entry(code.code().to_owned()).or_default() += 1;
        }
        if error.code().is_none() || client.is_closed() {
            connection = None;
        }
    }
}
