//! Commands of the Postgres-protocol port. Grammar of the stock ones: `repl_gram.y`.

use std::str::FromStr;

use pg_types::{Lsn, Term};

/// A command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `START_WAL_PUSH [(proto_version '3', allow_timeline_creation 'false')]`: a proposer.
    StartWalPush {
        /// Version of the messages that follow (L237).
        proto_version: u32,
        /// Whether a missing timeline should be made.
        allow_timeline_creation: bool,
    },
    /// `START_REPLICATION [SLOT name] [PHYSICAL] X/Y [(term='N')]`: a reader of WAL.
    StartReplication {
        /// First position wanted.
        start_lsn: Lsn,
        /// With a term: WAL up to the flush position while that term lasts. Without: committed WAL.
        term: Option<Term>,
    },
    /// `IDENTIFY_SYSTEM`
    IdentifySystem,
    /// `TIMELINE_STATUS`
    TimelineStatus,
}

/// Why a text is no command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// Not one of them.
    #[error("unknown command \"{0}\"")]
    Unknown(String),
    /// Something else was expected at a place.
    #[error("expected {expected} in {command}, found \"{found}\"")]
    Expected {
        /// The command.
        command: &'static str,
        /// What should be there.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// An option that the command does not have.
    #[error("{command} has no option \"{option}\"")]
    UnknownOption {
        /// The command.
        command: &'static str,
        /// The option.
        option: String,
    },
}

const PUSH: &str = "START_WAL_PUSH";
const REPLICATION: &str = "START_REPLICATION";

/// Words, quoted strings and punctuation of a command.
fn tokens(text: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim().trim_end_matches(';').trim_end();
    while let Some(first) = rest.chars().next() {
        let len = match first {
            '(' | ')' | ',' | '=' => 1,
            '\'' => {
                rest.get(1..).and_then(|tail| tail.find('\'')).map_or(rest.len(), |end| end + 2)
            }
            _ => {
                rest.find(|c: char| c.is_whitespace() || "(),='".contains(c)).unwrap_or(rest.len())
            }
        };
        let (token, tail) = rest.split_at(len);
        tokens.push(token.to_owned());
        rest = tail.trim_start();
    }
    tokens
}

struct Parser {
    command: &'static str,
    tokens: std::iter::Peekable<std::vec::IntoIter<String>>,
}

impl Parser {
    fn error(&self, expected: &'static str, found: Option<String>) -> CommandError {
        let found = found.unwrap_or_else(|| "end of command".to_owned());
        CommandError::Expected { command: self.command, expected, found }
    }

    /// Takes the next word when it is this keyword.
    fn keyword(&mut self, keyword: &str) -> bool {
        self.tokens.next_if(|token| token.eq_ignore_ascii_case(keyword)).is_some()
    }

    fn value<T: FromStr>(&mut self, expected: &'static str) -> Result<T, CommandError> {
        let token = self.tokens.next();
        let text = token.as_deref().unwrap_or_default();
        let text = text.strip_prefix('\'').and_then(|t| t.strip_suffix('\'')).unwrap_or(text);
        text.parse().map_err(|_| self.error(expected, token))
    }

    /// `(name [=] value, ...)`, if there is one; `take` reads the value of each name.
    fn options(
        &mut self,
        mut take: impl FnMut(&mut Parser, &str) -> Result<bool, CommandError>,
    ) -> Result<(), CommandError> {
        if !self.keyword("(") {
            return Ok(());
        }
        loop {
            let option: String = self.value("an option")?;
            self.keyword("=");
            if !take(self, &option)? {
                return Err(CommandError::UnknownOption { command: self.command, option });
            }
            if self.keyword(")") {
                return Ok(());
            }
            if !self.keyword(",") {
                let found = self.tokens.next();
                return Err(self.error("\",\" or \")\"", found));
            }
        }
    }

    fn finish(mut self, command: Command) -> Result<Command, CommandError> {
        match self.tokens.next() {
            None => Ok(command),
            found => Err(self.error("the end of the command", found)),
        }
    }
}

impl FromStr for Command {
    type Err = CommandError;

    fn from_str(text: &str) -> Result<Command, CommandError> {
        let mut tokens = tokens(text).into_iter().peekable();
        let name = tokens.next().unwrap_or_default();
        let parser = |command| Parser { command, tokens };
        if name.eq_ignore_ascii_case(PUSH) {
            start_wal_push(parser(PUSH))
        } else if name.eq_ignore_ascii_case(REPLICATION) {
            start_replication(parser(REPLICATION))
        } else if name.eq_ignore_ascii_case("IDENTIFY_SYSTEM") {
            parser("IDENTIFY_SYSTEM").finish(Command::IdentifySystem)
        } else if name.eq_ignore_ascii_case("TIMELINE_STATUS") {
            parser("TIMELINE_STATUS").finish(Command::TimelineStatus)
        } else {
            Err(CommandError::Unknown(text.chars().take(100).collect()))
        }
    }
}

fn start_wal_push(mut parser: Parser) -> Result<Command, CommandError> {
    // What computes without the list speak and expect.
    let (mut proto_version, mut allow_timeline_creation) = (2, true);
    parser.options(|parser, option| {
        match option {
            "proto_version" => proto_version = parser.value("a number")?,
            "allow_timeline_creation" => {
                allow_timeline_creation = parser.value("'true' or 'false'")?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    parser.finish(Command::StartWalPush { proto_version, allow_timeline_creation })
}

fn start_replication(mut parser: Parser) -> Result<Command, CommandError> {
    if parser.keyword("SLOT") {
        // There are no slots here; any name will do.
        let _: String = parser.value("a slot name")?;
    }
    parser.keyword("PHYSICAL");
    let start_lsn = parser.value("a position such as 0/1698A18")?;
    let mut term = None;
    parser.options(|parser, option| {
        match option {
            "term" => term = Some(Term(parser.value("a term")?)),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    parser.finish(Command::StartReplication { start_lsn, term })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn replication(start: u64, term: Option<u64>) -> Result<Command, CommandError> {
        Ok(Command::StartReplication { start_lsn: Lsn(start), term: term.map(Term) })
    }

    #[test]
    fn commands() {
        let parse = |text: &str| text.parse::<Command>();
        assert_eq!(
            parse("START_WAL_PUSH (proto_version '3', allow_timeline_creation 'false')"),
            Ok(Command::StartWalPush { proto_version: 3, allow_timeline_creation: false })
        );
        assert_eq!(
            parse("start_wal_push;"),
            Ok(Command::StartWalPush { proto_version: 2, allow_timeline_creation: true })
        );
        assert_eq!(parse("START_REPLICATION PHYSICAL 1/A0"), replication(0x1_0000_00A0, None));
        assert_eq!(parse("START_REPLICATION 0/1 (term='7')"), replication(1, Some(7)));
        assert_eq!(
            parse("START_REPLICATION SLOT \"s\" PHYSICAL 0/1 (term 7)"),
            replication(1, Some(7))
        );
        assert_eq!(parse(" IDENTIFY_SYSTEM "), Ok(Command::IdentifySystem));
        assert_eq!(parse("TIMELINE_STATUS"), Ok(Command::TimelineStatus));
    }

    #[test]
    fn errors_say_what_and_where() {
        for (text, part) in [
            ("DROP TABLE t", "unknown command \"DROP TABLE t\""),
            ("START_REPLICATION", "expected a position"),
            ("START_REPLICATION PHYSICAL 0/1 garbage", "found \"garbage\""),
            ("START_REPLICATION 0/1 (color 'red')", "no option \"color\""),
            ("START_REPLICATION 0/1 (term='7'", "found \"end of command\""),
            ("START_WAL_PUSH (proto_version 'three')", "expected a number"),
            ("IDENTIFY_SYSTEM now", "expected the end of the command"),
            ("", "unknown command"),
        ] {
            let error = text.parse::<Command>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_parses_or_fails(tail in "\\PC{0,40}") {
            drop(tail.parse::<Command>());
            drop(format!("START_WAL_PUSH {tail}").parse::<Command>());
            drop(format!("START_REPLICATION {tail}").parse::<Command>());
        }
    }
}
