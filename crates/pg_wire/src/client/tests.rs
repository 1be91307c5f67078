use super::*;

#[test]
fn endpoints() {
    let parse = |text: &str| text.parse::<Endpoint>();
    assert_eq!(parse("localhost:5454"), Ok(Endpoint::Tcp { host: "localhost".into(), port: 5454 }));
    assert_eq!(parse("[::1]:1"), Ok(Endpoint::Tcp { host: "::1".into(), port: 1 }));
    for bad in ["", "localhost", ":1", "localhost:", "localhost:65536", "localhost:x"] {
        assert!(parse(bad).unwrap_err().contains(bad));
    }
    let unix = Endpoint::Unix { directory: "/run/pg".into(), port: 5432 };
    assert_eq!(unix.to_string(), "/run/pg/.s.PGSQL.5432");
}

#[test]
fn options_survive_the_splitting_rules() {
    let endpoint = Endpoint::Tcp { host: "h".into(), port: 1 };
    let params = ConnectParams::new(endpoint, "u").option("a", "x y").option("b", r"\");
    let startup = crate::StartupParams::from_pairs(params.params);
    assert_eq!(startup.option("a").as_deref(), Some("x y"));
    assert_eq!(startup.option("b").as_deref(), Some(r"\"));
}
