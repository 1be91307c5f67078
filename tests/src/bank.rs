//! Money transfers: the oracle of what a client was promised.
//!
//! Every transfer moves an amount between two accounts and writes a row with a number of its own into a ledger,
//! in one transaction. What was acknowledged is kept on the client's side. Afterwards three things must hold:
//! the sum of all balances is what it was, every acknowledged number is in the ledger, and every balance is the
//! sum of its ledger rows. A transfer whose acknowledgement was lost with its connection may be there or not.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Result, ensure};
use postgres::Client;

use crate::cluster::{Endpoint, single_value};
use crate::load::{Clients, Meter, lock};

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

/// Clients that transfer money until they are stopped.
#[derive(Debug)]
pub struct Load {
    acknowledged: Arc<Mutex<BTreeSet<i64>>>,
    clients: Clients,
}

impl Load {
    /// Starts `clients` threads.
    pub fn start(endpoint: &Endpoint, clients: u32, meter: &Arc<Meter>) -> Load {
        let acknowledged = Arc::new(Mutex::new(BTreeSet::new()));
        // Far apart, so that several loads on the same tables use numbers of their own.
        let first = rand::random_range(0..i64::from(i32::MAX)) << 32;
        let numbers = Arc::new(AtomicI64::new(first));
        let act = {
            let (acknowledged, meter) = (Arc::clone(&acknowledged), Arc::clone(meter));
            move |_, client: &mut Client| {
                let number = numbers.fetch_add(1, Ordering::Relaxed);
                transfer(client, number)?;
                lock(&acknowledged).insert(number);
                meter.acknowledge();
                Ok(())
            }
        };
        Load { acknowledged, clients: Clients::start(endpoint, clients, meter, act) }
    }

    /// Stops the clients; the acknowledged numbers.
    pub fn finish(self) -> Result<BTreeSet<i64>> {
        self.clients.finish()?;
        Ok(std::mem::take(&mut lock(&self.acknowledged)))
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
