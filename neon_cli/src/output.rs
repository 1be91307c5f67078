//! What commands print: tables for people, JSON for programs.

use compute_ctl::ComputeStatus;
use pg_types::NodeId;
use serde::Serialize;
use serde_json::json;

use crate::environment::{Branch, Description, Endpoint};
use crate::error::{CliError, Result};
use crate::safekeeper::PartRow;
use crate::services::StatusRow;
use crate::timeline::Row;

fn print_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| CliError::failed(format!("could not write JSON: {error}")))?;
    println!("{text}");
    Ok(())
}

/// Columns aligned to their widest cell.
fn print_table<const N: usize>(header: [&str; N], rows: &[[String; N]]) {
    let mut widths = header.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; N]| {
        let padded: Vec<String> =
            cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        println!("{}", padded.join("  ").trim_end());
    };
    line(header);
    for row in rows {
        line(row.each_ref().map(String::as_str));
    }
}

fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Processes and their state.
pub fn status(rows: &[StatusRow], json: bool) -> Result<()> {
    if json {
        return print_json(&rows);
    }
    let cells: Vec<[String; 4]> = rows
        .iter()
        .map(|row| {
            let ports: Vec<String> = row.ports.iter().map(u16::to_string).collect();
            [row.name.clone(), row.state.to_owned(), or_dash(row.pid), ports.join(", ")]
        })
        .collect();
    print_table(["name", "state", "pid", "ports"], &cells);
    Ok(())
}

/// Where each safekeeper stands in each branch.
pub fn parts(rows: &[PartRow], json: bool) -> Result<()> {
    if json {
        return print_json(&rows);
    }
    let cells: Vec<[String; 9]> = rows
        .iter()
        .map(|row| {
            [
                row.branch.clone(),
                row.safekeeper.to_string(),
                row.state.clone(),
                or_dash(row.members.as_ref()),
                or_dash(row.term),
                or_dash(row.flush_lsn),
                or_dash(row.commit_lsn),
                or_dash(row.remote_consistent_lsn),
                row.readers.join(", "),
            ]
        })
        .collect();
    let header = [
        "branch",
        "safekeeper",
        "state",
        "members",
        "term",
        "flush",
        "commit",
        "page server",
        "read by",
    ];
    print_table(header, &cells);
    Ok(())
}

/// Safekeepers that were added.
pub fn added(ids: &[NodeId], json: bool) -> Result<()> {
    if json {
        return print_json(&json!({ "added": ids }));
    }
    for id in ids {
        println!("safekeeper {id}");
    }
    Ok(())
}

/// A token that was made.
pub fn token(token: &str, json: bool) -> Result<()> {
    if json {
        return print_json(&json!({ "token": token }));
    }
    println!("{token}");
    Ok(())
}

/// Branches of a tenant.
pub fn timelines(rows: &[Row], json: bool) -> Result<()> {
    if json {
        return print_json(&rows);
    }
    let cells: Vec<[String; 6]> = rows
        .iter()
        .map(|row| {
            [
                row.branch.clone(),
                row.timeline_id.to_string(),
                or_dash(row.ancestor.as_ref()),
                or_dash(row.ancestor_lsn),
                or_dash(row.last_record_lsn),
                row.state.to_owned(),
            ]
        })
        .collect();
    print_table(["branch", "timeline", "from", "at", "newest", "state"], &cells);
    Ok(())
}

/// Tenants.
pub fn tenants(description: &Description, json: bool) -> Result<()> {
    let mut ids: Vec<_> = description.branches.iter().map(|branch| branch.tenant_id).collect();
    ids.dedup();
    if json {
        let rows: Vec<_> = ids
            .iter()
            .map(|id| json!({ "tenant_id": id, "default": *id == description.default_tenant }))
            .collect();
        return print_json(&rows);
    }
    let cells: Vec<[String; 2]> = ids
        .iter()
        .map(|id| {
            let default = if *id == description.default_tenant { "default" } else { "" };
            [id.to_string(), default.to_owned()]
        })
        .collect();
    print_table(["tenant", ""], &cells);
    Ok(())
}

/// A branch that was made.
pub fn branch(branch: &Branch, json: bool) -> Result<()> {
    if json {
        return print_json(branch);
    }
    println!("branch {} is timeline {}", branch.name, branch.timeline_id);
    Ok(())
}

/// An endpoint that was defined.
pub fn endpoint(endpoint: &Endpoint, json: bool) -> Result<()> {
    if json {
        return print_json(endpoint);
    }
    println!("endpoint {} on branch {}, port {}", endpoint.name, endpoint.branch, endpoint.port);
    Ok(())
}

/// An endpoint that takes connections now.
pub fn started(
    endpoint: &Endpoint,
    status: &ComputeStatus,
    timings: bool,
    json: bool,
) -> Result<()> {
    if json {
        return print_json(status);
    }
    println!("{}", connection_uri(endpoint));
    if timings {
        let cells: Vec<[String; 2]> = status
            .timings_ms
            .iter()
            .map(|timing| [timing.phase.clone(), format!("{:.1}", timing.milliseconds)])
            .collect();
        print_table(["phase", "ms"], &cells);
    }
    Ok(())
}

/// How a client connects to an endpoint.
pub fn connection_uri(endpoint: &Endpoint) -> String {
    format!("postgresql://{}@127.0.0.1:{}/postgres", compute_ctl::SUPERUSER, endpoint.port)
}
