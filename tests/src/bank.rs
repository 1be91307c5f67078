//! Money transfers: the oracle of what a client was promised.
//!
//! Every transfer moves an amount between two accounts and writes a row with a number of its own into a ledger,
//! in one transaction. What was acknowledged is kept on the client's side. Afterwards three things must hold:
//! the sum of all balances is what it was, every acknowledged number is in the ledger, and every balance is the
//! sum of its ledger rows. A transfer whose acknowledgement was lost with its connection may be there or not.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, ensure};
use postgres::Client;

use crate::cluster::{Endpoint, single_value};

/// Accounts in the bank.
pub const ACCOUNTS: i32 = 100;
/// What each account starts with.
pub const BALANCE: i64 = 1000;

/// Makes the tables.
pub fn create(client: &mut Client) -> Result<()> {
    client.batch_execute(&format!(
        "CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL);
         CREATE TABLE ledger (number bigint PRIMARY KEY, source int, target int, amount bigint);
         INSERT INTO account SELECT i, {BALANCE} FROM generate_series(1, {ACCOUNTS}) i;"
    ))?;
    Ok(())
}

/// Clients that transfer money until they are stopped, reconnecting whenever they lose the server.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<BTreeSet<i64>>>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts `clients` threads.
    pub fn start(endpoint: &Endpoint, clients: u64) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(Mutex::new(BTreeSet::new()));
        let numbers = Arc::new(AtomicU64::new(1));
        let clients = (0..clients)
            .map(|_| {
                let (endpoint, stop, acknowledged, numbers) =
                    (endpoint.clone(), stop.clone(), acknowledged.clone(), numbers.clone());
                std::thread::spawn(move || client(&endpoint, &stop, &acknowledged, &numbers))
            })
            .collect();
        Load { stop, acknowledged, clients }
    }

    /// How many transfers were acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.lock().map_or(0, |numbers| numbers.len())
    }

    /// Stops the clients; the acknowledged numbers.
    pub fn finish(self) -> BTreeSet<i64> {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            // A client that panicked has lost its own numbers only.
            let _ = client.join();
        }
        let numbers = self.acknowledged.lock().map(|mut numbers| std::mem::take(&mut *numbers));
        numbers.unwrap_or_default()
    }
}

fn client(
    endpoint: &Endpoint,
    stop: &AtomicBool,
    acknowledged: &Mutex<BTreeSet<i64>>,
    numbers: &AtomicU64,
) {
    let mut connection: Option<Client> = None;
    while !stop.load(Ordering::Relaxed) {
        let Some(client) = &mut connection else {
            connection = endpoint.connect("postgres").ok();
            if connection.is_none() {
                std::thread::sleep(Duration::from_millis(20));
            }
            continue;
        };
        let number = i64::try_from(numbers.fetch_add(1, Ordering::Relaxed)).unwrap_or(i64::MAX);
        match transfer(client, number) {
            Ok(()) => {
                if let Ok(mut numbers) = acknowledged.lock() {
                    numbers.insert(number);
                }
            }
            Err(error) if error.code().is_some() && !client.is_closed() => {}
            Err(_) => connection = None,
        }
    }
}

fn transfer(client: &mut Client, number: i64) -> Result<(), postgres::Error> {
    let source = rand::random_range(1..=ACCOUNTS);
    let target = rand::random_range(1..=ACCOUNTS);
    let amount = rand::random_range(1..=10_i64);
    // Lower account first, so that transfers do not deadlock.
    let steps = if source <= target {
        [(source, -amount), (target, amount)]
    } else {
        [(target, amount), (source, -amount)]
    };
    let mut transaction = client.transaction()?;
    for (account, change) in steps {
        transaction.execute(
            "UPDATE account SET balance = balance + $2 WHERE id = $1",
            &[&account, &change],
        )?;
    }
    transaction.execute(
        "INSERT INTO ledger VALUES ($1, $2, $3, $4)",
        &[&number, &source, &target, &amount],
    )?;
    transaction.commit()
}

/// Checks all three promises.
pub fn check(client: &mut Client, acknowledged: &BTreeSet<i64>) -> Result<()> {
    let total = single_value(client, "SELECT sum(balance) FROM account")?;
    let expected = i64::from(ACCOUNTS) * BALANCE;
    ensure!(total == expected.to_string(), "the sum is {total}, it was {expected}");
    let present: BTreeSet<i64> = client
        .query("SELECT number FROM ledger", &[])?
        .iter()
        .map(|row| row.get::<_, i64>(0))
        .collect();
    let lost: Vec<_> = acknowledged.difference(&present).collect();
    ensure!(lost.is_empty(), "{} acknowledged commits are lost: {lost:?}", lost.len());
    let wrong = single_value(
        client,
        &format!(
            "SELECT count(*) FROM account a WHERE balance <> {BALANCE}
               - coalesce((SELECT sum(amount) FROM ledger WHERE source = a.id), 0)
               + coalesce((SELECT sum(amount) FROM ledger WHERE target = a.id), 0)"
        ),
    )?;
    ensure!(wrong == "0", "{wrong} balances differ from their ledger rows");
    Ok(())
}
