//! HTTP calls to the services.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{CliError, Result};

/// Longest time for one call; the creation of a timeline runs initdb.
const CALL_TIMEOUT: Duration = Duration::from_secs(120);

/// A service that does not say within this time that it is up is stopped, cut off or hangs.
const UP_TIMEOUT: Duration = Duration::from_secs(2);

/// A service's HTTP API.
#[derive(Clone)]
pub struct Api {
    what: String,
    base: String,
    token: Option<String>,
    agent: ureq::Agent,
}

/// An answer: the status and the body, which is JSON or null.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Value,
}

fn agent(timeout: Duration) -> ureq::Agent {
    ureq::Agent::config_builder()
        .timeout_global(Some(timeout))
        .http_status_as_error(false)
        .build()
        .new_agent()
}

impl Api {
    /// API of a service on the loopback address, which may want a token.
    pub fn local(what: impl Into<String>, port: u16, token: Option<&str>) -> Api {
        let base = format!("http://127.0.0.1:{port}");
        let token = token.map(str::to_owned);
        Api { what: what.into(), base, token, agent: agent(CALL_TIMEOUT) }
    }

    /// The same for calls that take no longer than this.
    pub fn within(self, timeout: Duration) -> Api {
        Api { agent: agent(timeout), ..self }
    }

    /// GET; any status is an answer.
    pub fn get(&self, path: &str) -> Result<Answer> {
        self.finish("GET", path, self.signed(self.agent.get(self.url(path))).call())
    }

    /// POST with a JSON body; any status is an answer.
    pub fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        let request = self.signed(self.agent.post(self.url(path)));
        self.finish("POST", path, request.send_json(body))
    }

    /// PUT with a JSON body; any status is an answer.
    pub fn put(&self, path: &str, body: &Value) -> Result<Answer> {
        let request = self.signed(self.agent.put(self.url(path)));
        self.finish("PUT", path, request.send_json(body))
    }

    /// DELETE; any status is an answer.
    pub fn delete(&self, path: &str) -> Result<Answer> {
        self.finish("DELETE", path, self.signed(self.agent.delete(self.url(path))).call())
    }

    /// Whether the service answers at all.
    pub fn is_up(&self) -> bool {
        let api = self.clone().within(UP_TIMEOUT);
        api.get("/v1/status").is_ok_and(|answer| answer.status == 200)
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn signed<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.token {
            Some(token) => request.header("Authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    fn finish(
        &self,
        method: &str,
        path: &str,
        result: std::result::Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<Answer> {
        let failed = |error: ureq::Error| {
            CliError::not_ready(format!(
                "the {} does not answer {method} {path}: {error}",
                self.what
            ))
        };
        let mut response = result.map_err(failed)?;
        let status = response.status().as_u16();
        let text = response.body_mut().read_to_string().map_err(failed)?;
        let body = serde_json::from_str(&text).unwrap_or(match text.is_empty() {
            true => Value::Null,
            false => Value::String(text),
        });
        Ok(Answer { status, body })
    }
}

impl Answer {
    /// The body as `T` when the status is a success, else an error that carries the service's own words.
    pub fn parse<T: DeserializeOwned>(self, doing: &str) -> Result<T> {
        let body = self.expect_success(doing)?;
        serde_json::from_value(body)
            .map_err(|error| CliError::failed(format!("could not {doing}: odd answer: {error}")))
    }

    /// The body when the status is a success.
    pub fn expect_success(self, doing: &str) -> Result<Value> {
        if (200..300).contains(&self.status) {
            return Ok(self.body);
        }
        let words = match &self.body {
            Value::Object(map) => map.get("msg").and_then(Value::as_str).unwrap_or_default(),
            Value::String(text) => text.as_str(),
            _ => "",
        };
        let message = format!("could not {doing}: {words} (HTTP {})", self.status);
        Err(match self.status {
            404 => CliError::not_found(message),
            409 | 412 => CliError::conflict(message),
            503 | 504 => CliError::not_ready(message),
            _ => CliError::failed(message),
        })
    }
}
