//! Messages and commands in words.

use crate::command::AcceptorCommand;
use crate::membership::MembershipConf;
use crate::message::{AcceptorMessage, ProposerMessage};

/// `, membership 2[1 2 3]`, or nothing for the empty one.
fn membership(mconf: &MembershipConf) -> String {
    if *mconf == MembershipConf::default() {
        return String::new();
    }
    format!(", membership {mconf}")
}

pub(super) fn proposer_message(message: &ProposerMessage) -> String {
    match message {
        ProposerMessage::Greeting(greeting) => format!("greeting{}", membership(&greeting.mconf)),
        ProposerMessage::VoteRequest(vote) => format!("vote request, term {}", vote.term),
        ProposerMessage::Elected(elected) => format!(
            "elected in term {}, stream from {}, history {}",
            elected.term, elected.start_streaming_at, elected.term_history
        ),
        ProposerMessage::Append(append) => format!(
            "append {}..{}, commit {}, truncate {}",
            append.header.begin_lsn,
            append.header.end_lsn,
            append.header.commit_lsn,
            append.header.truncate_lsn
        ),
    }
}

pub(super) fn acceptor_message(message: &AcceptorMessage) -> String {
    match message {
        AcceptorMessage::Greeting(greeting) => {
            format!("greeting, term {}{}", greeting.term, membership(&greeting.mconf))
        }
        AcceptorMessage::VoteResponse(vote) => format!(
            "vote {}, term {}, flush {}, history {}",
            if vote.vote_given { "given" } else { "refused" },
            vote.term,
            vote.flush_lsn,
            vote.term_history
        ),
        AcceptorMessage::AppendResponse(response) => format!(
            "append response, term {}, flush {}, commit {}",
            response.term, response.flush_lsn, response.commit_lsn
        ),
    }
}

pub(super) fn command(command: &AcceptorCommand) -> String {
    match command {
        AcceptorCommand::SaveState(state) => format!(
            "save state: term {}, commit {}, history {}{}",
            state.term,
            state.commit_lsn,
            state.term_history,
            membership(&state.mconf)
        ),
        AcceptorCommand::TruncateWal { end_lsn } => format!("truncate WAL to {end_lsn}"),
        AcceptorCommand::WriteWal { begin_lsn, wal } => {
            format!("write {} bytes at {begin_lsn}", wal.len())
        }
        AcceptorCommand::FlushWal { may_wait: true } => "flush soon".to_owned(),
        AcceptorCommand::FlushWal { may_wait: false } => "flush now".to_owned(),
        AcceptorCommand::CommitAdvanced { commit_lsn } => format!("commit {commit_lsn}"),
        AcceptorCommand::Close { conn, refusal } => format!("close c{}: {refusal}", conn.0),
        AcceptorCommand::Quarantine { reason } => format!("quarantine: {reason}"),
        AcceptorCommand::Reply { conn, message } => {
            format!("reply to c{}: {}", conn.0, acceptor_message(message))
        }
    }
}
