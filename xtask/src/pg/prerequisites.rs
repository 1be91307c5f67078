//! Tools and libraries that a build needs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use super::progress;

/// How to see that something is there.
#[derive(Debug, Clone, Copy)]
enum Probe {
    /// A program in `PATH`.
    Program(&'static str),
    /// A header that the C compiler finds.
    Header(&'static str),
    /// The library with which bindings to PostgreSQL's headers are made.
    Libclang,
}

/// One thing that has to be there, and the Debian package that has it.
#[derive(Debug, Clone, Copy)]
pub struct Prerequisite {
    probe: Probe,
    package: &'static str,
}

const fn program(name: &'static str, package: &'static str) -> Prerequisite {
    Prerequisite { probe: Probe::Program(name), package }
}

const fn header(name: &'static str, package: &'static str) -> Prerequisite {
    Prerequisite { probe: Probe::Header(name), package }
}

/// For the extensions (pgrx makes bindings with libclang).
pub const FOR_EXTENSIONS: &[Prerequisite] =
    &[program("clang", "clang"), Prerequisite { probe: Probe::Libclang, package: "libclang-dev" }];

/// For PostgreSQL.
pub const FOR_POSTGRES: &[Prerequisite] = &[
    program("gcc", "gcc"),
    header("stdio.h", "libc6-dev"),
    program("make", "make"),
    program("bison", "bison"),
    program("flex", "flex"),
    program("perl", "perl"),
    program("patch", "patch"),
    program("tar", "tar"),
    program("bzip2", "bzip2"),
    program("pkg-config", "pkg-config"),
    header("readline/readline.h", "libreadline-dev"),
    header("zlib.h", "zlib1g-dev"),
    header("unicode/ucol.h", "libicu-dev"),
    header("lz4.h", "liblz4-dev"),
    header("zstd.h", "libzstd-dev"),
    header("openssl/ssl.h", "libssl-dev"),
];

/// For cutting networks.
pub const FOR_NETWORK_CUTS: &[Prerequisite] = &[program("tc", "iproute2")];

/// Installs what is missing when we are root and there is apt-get; otherwise says how to.
pub fn ensure(wanted: &[Prerequisite]) -> Result<()> {
    let missing = missing(wanted);
    if missing.is_empty() {
        return Ok(());
    }
    let install = format!("apt-get install --yes --no-install-recommends {}", missing.join(" "));
    let apt = find_program("apt-get").is_some();
    if !apt || !nix::unistd::geteuid().is_root() {
        let how = if apt { "run as root" } else { "their names in Debian; on Debian, run as root" };
        bail!("packages are missing: {}\n({how}: {install})", missing.join(" "));
    }
    let dir = std::env::temp_dir();
    let log = |name: &str| dir.join(format!("neon-{name}-{}.log", std::process::id()));
    let apt_get = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(args);
        command
    };
    progress::run("read the package lists", apt_get(&["update"]), &log("apt-update"))?;
    let mut command = apt_get(&["install", "--yes", "--no-install-recommends"]);
    command.args(&missing);
    progress::run(format!("install {}", missing.join(" ")), command, &log("apt-install"))?;
    let still = self::missing(wanted);
    if !still.is_empty() {
        bail!("still missing after `{install}`: {}", still.join(" "));
    }
    Ok(())
}

/// Packages of what is missing.
fn missing(wanted: &[Prerequisite]) -> Vec<&'static str> {
    let compiler = find_program("gcc").or_else(|| find_program("cc"));
    wanted
        .iter()
        .filter(|wanted| match wanted.probe {
            Probe::Program(name) => find_program(name).is_none(),
            Probe::Header(name) => !compiler.as_deref().is_some_and(|cc| has_header(cc, name)),
            Probe::Libclang => !has_libclang(),
        })
        .map(|wanted| wanted.package)
        .collect()
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// The C++ headers of ICU exist in C too: everything here is looked for as C.
fn has_header(compiler: &Path, name: &str) -> bool {
    let Ok(dir) = tempfile::tempdir() else { return false };
    let file = dir.path().join("probe.c");
    std::fs::write(&file, format!("#include <stdio.h>\n#include <{name}>\n")).is_ok()
        && Command::new(compiler)
            .args(["-E", "-o", "/dev/null"])
            .arg(&file)
            .output()
            .is_ok_and(|output| output.status.success())
}

/// Where clang-sys, which loads the library, looks on Linux.
fn has_libclang() -> bool {
    let mut dirs: Vec<PathBuf> =
        std::env::var_os("LIBCLANG_PATH").map(PathBuf::from).into_iter().collect();
    for lib in ["/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/local/lib64"] {
        dirs.push(lib.into());
        for entry in std::fs::read_dir(lib).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with("llvm") {
                dirs.extend([entry.path().join("lib"), entry.path().join("lib64")]);
            } else if name.contains("-linux-") {
                dirs.push(entry.path());
            }
        }
    }
    dirs.iter().flat_map(std::fs::read_dir).flatten().flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        (name.starts_with("libclang.so") || name.starts_with("libclang-"))
            && name.contains(".so")
            && !name.starts_with("libclang-cpp")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_by_package() {
        let wanted = [
            program("sh", "dash"),
            program("no-such-program", "no-such-package"),
            header("no/such/header.h", "no-such-dev"),
        ];
        assert_eq!(missing(&wanted), ["no-such-package", "no-such-dev"]);
    }
}
