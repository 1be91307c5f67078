//! Where the page server is: the subset of libpq's connection strings that makes sense here.

/// Address and login of a page server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnInfo {
    /// Host name, address, or (starting with a slash) directory of a unix socket.
    pub host: String,
    /// TCP port, or the number in the unix socket's name.
    pub port: u16,
    /// `user` of the startup message.
    pub user: String,
    /// Sent when the server asks for a password.
    pub password: Option<String>,
}

/// Why a text is no connection string.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnInfoError {
    /// Not `keyword=value` pairs and not a URI.
    #[error("expected \"keyword=value\" at byte {at} of the connection string")]
    Syntax {
        /// Where.
        at: usize,
    },
    /// A quote without its partner.
    #[error("unterminated quote in the value of \"{keyword}\"")]
    Quote {
        /// In which value.
        keyword: String,
    },
    /// A keyword that has no meaning here.
    #[error(
        "unknown keyword \"{0}\" in the connection string: known are host, port, user, password, dbname"
    )]
    Keyword(String),
    /// Not a port number.
    #[error("invalid port \"{0}\"")]
    Port(String),
    /// Nobody to connect to.
    #[error("the connection string names no host")]
    NoHost,
}

const DEFAULT_PORT: u16 = 6400;
const DEFAULT_USER: &str = "neon";

impl ConnInfo {
    /// Parses `host=… port=…` or `postgresql://user:password@host:port/…`.
    ///
    /// # Errors
    /// Says what is wrong and where.
    pub fn parse(text: &str) -> Result<ConnInfo, ConnInfoError> {
        let text = text.trim();
        for scheme in ["postgresql://", "postgres://"] {
            if let Some(rest) = text.strip_prefix(scheme) {
                return from_uri(rest);
            }
        }
        from_pairs(text)
    }
}

fn port(text: &str) -> Result<u16, ConnInfoError> {
    match text.parse() {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(ConnInfoError::Port(text.to_owned())),
    }
}

fn from_uri(rest: &str) -> Result<ConnInfo, ConnInfoError> {
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let (login, address) =
        authority.rsplit_once('@').map_or((None, authority), |(l, a)| (Some(l), a));
    let (user, password) = match login.map(|login| login.split_once(':').unwrap_or((login, ""))) {
        Some((user, password)) => (user, Some(password).filter(|p| !p.is_empty())),
        None => ("", None),
    };
    // "[::1]:6400" has colons within its brackets.
    let (host, port_text) = match address.strip_prefix('[').and_then(|a| a.split_once(']')) {
        Some((host, rest)) => (host, rest.strip_prefix(':')),
        None => address.split_once(':').map_or((address, None), |(h, p)| (h, Some(p))),
    };
    if host.is_empty() {
        return Err(ConnInfoError::NoHost);
    }
    Ok(ConnInfo {
        host: host.to_owned(),
        port: port_text.map_or(Ok(DEFAULT_PORT), port)?,
        user: if user.is_empty() { DEFAULT_USER } else { user }.to_owned(),
        password: password.map(str::to_owned),
    })
}

fn from_pairs(text: &str) -> Result<ConnInfo, ConnInfoError> {
    let mut host = None;
    let mut info = ConnInfo {
        host: String::new(),
        port: DEFAULT_PORT,
        user: DEFAULT_USER.to_owned(),
        password: None,
    };
    let mut rest = text;
    while !rest.trim_start().is_empty() {
        rest = rest.trim_start();
        let at = text.len() - rest.len();
        let (keyword, after) = rest.split_once('=').ok_or(ConnInfoError::Syntax { at })?;
        let keyword = keyword.trim_end();
        if keyword.is_empty() || keyword.contains(char::is_whitespace) {
            return Err(ConnInfoError::Syntax { at });
        }
        let (value, after) = value(keyword, after.trim_start())?;
        rest = after;
        match keyword {
            "host" | "hostaddr" => host = Some(value),
            "port" => info.port = port(&value)?,
            "user" => info.user = value,
            "password" => info.password = Some(value),
            "dbname" | "application_name" | "sslmode" => {}
            other => return Err(ConnInfoError::Keyword(other.to_owned())),
        }
    }
    info.host = host.filter(|host| !host.is_empty()).ok_or(ConnInfoError::NoHost)?;
    Ok(info)
}

/// One value, bare or in single quotes with backslash escapes, and what follows it.
fn value<'a>(keyword: &str, text: &'a str) -> Result<(String, &'a str), ConnInfoError> {
    let quoted = text.strip_prefix('\'');
    let body = quoted.unwrap_or(text);
    let mut value = String::new();
    let mut chars = body.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            '\'' if quoted.is_some() => return Ok((value, body.get(at + 1..).unwrap_or_default())),
            c if c.is_whitespace() && quoted.is_none() => {
                return Ok((value, body.get(at..).unwrap_or_default()));
            }
            c => value.push(c),
        }
    }
    if quoted.is_some() {
        return Err(ConnInfoError::Quote { keyword: keyword.to_owned() });
    }
    Ok((value, ""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> (String, u16, String, Option<String>) {
        let info = ConnInfo::parse(text).unwrap();
        (info.host, info.port, info.user, info.password)
    }

    fn expect(
        host: &str,
        port: u16,
        user: &str,
        password: Option<&str>,
    ) -> (String, u16, String, Option<String>) {
        (host.into(), port, user.into(), password.map(Into::into))
    }

    #[test]
    fn understands_both_forms() {
        assert_eq!(parse("host=127.0.0.1 port=5000"), expect("127.0.0.1", 5000, "neon", None));
        assert_eq!(
            parse(r" host = 'a b' password='it\'s' user=u\ v "),
            expect("a b", 6400, "u v", Some("it's"))
        );
        assert_eq!(parse("postgresql://h"), expect("h", 6400, "neon", None));
        assert_eq!(parse("postgres://u:p@[::1]:7/x?y"), expect("::1", 7, "u", Some("p")));
        assert_eq!(parse("postgres://u@h:7"), expect("h", 7, "u", None));
    }

    #[test]
    fn names_what_is_wrong() {
        let error = |text: &str| ConnInfo::parse(text).unwrap_err();
        assert_eq!(error(""), ConnInfoError::NoHost);
        assert_eq!(error("port=1"), ConnInfoError::NoHost);
        assert_eq!(error("host"), ConnInfoError::Syntax { at: 0 });
        assert_eq!(error("host=a x y=1"), ConnInfoError::Syntax { at: 7 });
        assert_eq!(error("host=a port=0"), ConnInfoError::Port("0".into()));
        assert_eq!(error("host='a"), ConnInfoError::Quote { keyword: "host".into() });
        assert_eq!(error("hots=a"), ConnInfoError::Keyword("hots".into()));
        assert_eq!(error("postgres://:7"), ConnInfoError::NoHost);
    }

    proptest! {
        #[test]
        fn is_total(text in ".*") {
            let _ = ConnInfo::parse(&text);
        }
    }
}
