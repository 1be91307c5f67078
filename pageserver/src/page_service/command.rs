//! Commands of the page service: words of a simple query.

use page_protocol::ProtocolVersion;
use pg_types::{Lsn, TenantId, TimelineId};

use crate::basebackup::BackupKind;

/// The command that asks for a kind of backup.
pub fn backup_name(kind: BackupKind) -> &'static str {
    match kind {
        BackupKind::Base => "basebackup",
        BackupKind::Full => "fullbackup",
    }
}

/// A command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// `pagestream_v3 TENANT TIMELINE`: page requests until the client ends it.
    Pagestream {
        /// Version of the stream.
        version: ProtocolVersion,
        /// Tenant.
        tenant: TenantId,
        /// Timeline.
        timeline: TimelineId,
    },
    /// `basebackup TENANT TIMELINE [LSN]`, `fullbackup …`: a tar archive.
    Backup {
        /// Which of the two.
        kind: BackupKind,
        /// Tenant.
        tenant: TenantId,
        /// Timeline.
        timeline: TimelineId,
        /// As of this position; the newest one when left out.
        lsn: Option<Lsn>,
    },
    /// `SET …`: drivers send some at start; nothing here can be set.
    Set,
}

/// Why a text is no command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The first word is no command.
    #[error("unknown command \"{0}\"")]
    Unknown(String),
    /// A command with too few, too many or malformed words.
    #[error("{usage}: {reason}")]
    Usage {
        /// How it is written.
        usage: &'static str,
        /// What is wrong.
        reason: String,
    },
}

impl Command {
    /// Reads a command; a semicolon at its end is allowed.
    pub fn parse(text: &str) -> Result<Command, CommandError> {
        let words: Vec<&str> = text.trim().trim_end_matches(';').split_ascii_whitespace().collect();
        let Some((name, arguments)) = words.split_first() else {
            return Err(CommandError::Unknown(String::new()));
        };
        match name.to_ascii_lowercase().as_str() {
            "pagestream_v2" => pagestream(ProtocolVersion::V2, arguments),
            "pagestream_v3" => pagestream(ProtocolVersion::V3, arguments),
            "basebackup" => backup(BackupKind::Base, "basebackup TENANT TIMELINE [LSN]", arguments),
            "fullbackup" => backup(BackupKind::Full, "fullbackup TENANT TIMELINE [LSN]", arguments),
            "set" => Ok(Command::Set),
            _ => Err(CommandError::Unknown(name.chars().take(64).collect())),
        }
    }
}

fn pagestream(version: ProtocolVersion, arguments: &[&str]) -> Result<Command, CommandError> {
    let usage = match version {
        ProtocolVersion::V2 => "pagestream_v2 TENANT TIMELINE",
        ProtocolVersion::V3 => "pagestream_v3 TENANT TIMELINE",
    };
    let [tenant, timeline] = arguments else { return Err(wrong_count(usage, arguments)) };
    Ok(Command::Pagestream {
        version,
        tenant: parsed(usage, tenant)?,
        timeline: parsed(usage, timeline)?,
    })
}

fn backup(
    kind: BackupKind,
    usage: &'static str,
    arguments: &[&str],
) -> Result<Command, CommandError> {
    let (tenant, timeline, lsn) = match arguments {
        [tenant, timeline] => (tenant, timeline, None),
        [tenant, timeline, lsn] => (tenant, timeline, Some(parsed(usage, lsn)?)),
        _ => return Err(wrong_count(usage, arguments)),
    };
    Ok(Command::Backup {
        kind,
        tenant: parsed(usage, tenant)?,
        timeline: parsed(usage, timeline)?,
        lsn,
    })
}

fn wrong_count(usage: &'static str, arguments: &[&str]) -> CommandError {
    CommandError::Usage {
        usage,
        reason: format!("got {} words after the command", arguments.len()),
    }
}

fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(
    usage: &'static str,
    word: &str,
) -> Result<T, CommandError> {
    word.parse().map_err(|error: T::Err| CommandError::Usage { usage, reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const IDS: &str = "11111111111111111111111111111111 22222222222222222222222222222222";

    #[test]
    fn commands_are_read() {
        let (tenant, timeline) = (TenantId([0x11; 16]), TimelineId([0x22; 16]));
        for version in [ProtocolVersion::V2, ProtocolVersion::V3] {
            assert_eq!(
                Command::parse(&version.command(tenant, timeline)),
                Ok(Command::Pagestream { version, tenant, timeline })
            );
        }
        assert_eq!(
            Command::parse(&format!(" BaseBackup {IDS} 0/16 ; ")),
            Ok(Command::Backup { kind: BackupKind::Base, tenant, timeline, lsn: Some(Lsn(0x16)) })
        );
        assert_eq!(
            Command::parse(&format!("fullbackup {IDS}")),
            Ok(Command::Backup { kind: BackupKind::Full, tenant, timeline, lsn: None })
        );
        assert_eq!(Command::parse("set datestyle = 'iso'"), Ok(Command::Set));
    }

    #[test]
    fn refusals_say_how_it_is_written() {
        let error = Command::parse("basebackup x").unwrap_err().to_string();
        assert_eq!(error, "basebackup TENANT TIMELINE [LSN]: got 1 words after the command");
        let error = Command::parse(&format!("fullbackup {IDS} nowhere")).unwrap_err().to_string();
        assert!(error.contains("invalid LSN \"nowhere\""), "{error}");
        assert_eq!(
            Command::parse("select 1").unwrap_err().to_string(),
            "unknown command \"select\""
        );
    }

    proptest! {
        #[test]
        fn any_text_is_a_command_or_an_error(text in ".{0,200}") {
            let _ = Command::parse(&text);
        }
    }
}
