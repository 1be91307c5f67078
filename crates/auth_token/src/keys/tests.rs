use std::os::unix::fs::PermissionsExt;

use super::*;

/// The examples of RFC 8410 (sections 10.3 and 10.1), in the form that OpenSSL writes.
const OPENSSL_SECRET: &str = "-----BEGIN PRIVATE KEY-----\n\
MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
const OPENSSL_PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\n\
MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";

fn reason(error: KeyError) -> String {
    error.to_string()
}

#[test]
fn keys_survive_their_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret.pem");
    let key = SigningKey::generate().unwrap();
    fs::write(&path, key.secret_pem()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let error = reason(SigningKey::load(&path).unwrap_err());
    assert!(error.contains("can be read by others (mode 640)"), "{error}");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let read = SigningKey::load(&path).unwrap();
    assert_eq!(read.public_pem().unwrap(), key.public_pem().unwrap());
    assert_eq!(format!("{read:?}"), "SigningKey");
}

#[test]
fn keys_of_openssl_are_read() {
    let key = SigningKey::of_text(Path::new("k"), OPENSSL_SECRET.as_bytes()).unwrap();
    assert_eq!(key.public_pem().unwrap(), OPENSSL_PUBLIC);
    assert_eq!(key.secret_pem(), OPENSSL_SECRET);
}

#[test]
fn a_directory_has_all_its_pem_files() {
    let dir = tempfile::tempdir().unwrap();
    let public = || SigningKey::generate().unwrap().public_pem().unwrap();
    fs::write(dir.path().join("a.pem"), public()).unwrap();
    fs::write(dir.path().join("b.pem"), public() + &public()).unwrap();
    fs::write(dir.path().join("README"), "nothing").unwrap();
    assert_eq!(format!("{:?}", PublicKeys::load(dir.path()).unwrap()), "3 keys");
    let many: String = (0..KEYS_MAX).map(|_| public()).collect();
    fs::write(dir.path().join("c.pem"), many).unwrap();
    assert!(matches!(PublicKeys::load(dir.path()), Err(KeyError::TooMany(_))));
}

#[test]
fn what_is_no_key_is_named() {
    let of_text =
        |text: &str| reason(PublicKeys::of_text(Path::new("k.pem"), text.as_bytes()).unwrap_err());
    assert_eq!(of_text(""), "k.pem is not a PEM file");
    assert_eq!(of_text(OPENSSL_SECRET), "k.pem has a private key where public ones belong");
    let short = OPENSSL_PUBLIC.replace("MCow", "MCkw");
    assert_eq!(of_text(&short), "k.pem has a public key that is not an Ed25519 one");
    let certificate = OPENSSL_PUBLIC.replace("PUBLIC KEY", "CERTIFICATE");
    assert!(of_text(&certificate).contains("neither"), "{}", of_text(&certificate));
    let secret =
        |text: &str| reason(SigningKey::of_text(Path::new("k"), text.as_bytes()).unwrap_err());
    assert_eq!(secret(OPENSSL_PUBLIC), "k has a public key where a private one belongs");
    assert!(secret(&OPENSSL_SECRET.repeat(2)).contains("several"));
    assert!(reason(PublicKeys::load(Path::new("/nowhere")).unwrap_err()).contains("/nowhere"));
}

proptest::proptest! {
    #[test]
    fn any_file_is_read_or_refused(text in "(-----BEGIN (PUBLIC|PRIVATE) KEY-----\n)?[A-Za-z0-9+/=\n]{0,90}(-----END (PUBLIC|PRIVATE) KEY-----\n)?") {
        drop(PublicKeys::of_text(Path::new("k"), text.as_bytes()));
        drop(SigningKey::of_text(Path::new("k"), text.as_bytes()));
    }
}
