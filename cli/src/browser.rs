//! Opens pages in the user's browser.
//!
//! Owns the programs that do so. They are those of the desktop, so that its settings decide which browser it is; a crate would call
//! the same two. Must never take the terminal, fail a command, or end a browser when the command ends.

use std::{
    ffi::OsStr,
    io,
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
};

use crate::output;

/// The program that opens a URL as the desktop is set.
const OPENER: &str = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };

/// Opens a page. What goes wrong is noted, with the URL, since people can open it themselves. Others on this machine can read the
/// URL while it opens: it must not hold a token.
pub(crate) fn open_in_browser(url: &str) {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    // Without a display, xdg-open would start a browser of the terminal.
    let has_display = cfg!(target_os = "macos") || is_set("DISPLAY") || is_set("WAYLAND_DISPLAY") || is_set("BROWSER");
    let failed = move |url: &str, reason: &str| output::note(&format!("cannot open a browser: {reason}. Open {url}"));
    if !has_display {
        return failed(url, "there is no display");
    }
    let mut opener = match start(OPENER.as_ref(), url) {
        Ok(opener) => opener,
        Err(error) => return failed(url, &format!("{OPENER}: {error}")),
    };
    let url = url.to_owned();
    // Some openers run as long as the browser.
    let waiting = std::thread::Builder::new().name("browser".into()).spawn(move || match opener.wait() {
        Ok(status) if !status.success() => failed(&url, &format!("{OPENER} failed, {status}")),
        Ok(_) | Err(_) => {}
    });
    // Then nobody hears how it ended.
    drop(waiting);
}

/// Starts a program with a URL, in a process group of its own: ctrl-c is for the command and not for the browser.
fn start(program: &OsStr, url: &str) -> io::Result<Child> {
    let is_page = url.starts_with("http://") || url.starts_with("https://");
    if !is_page || url.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "this is no URL of a page"));
    }
    let mut command = Command::new(program);
    command.arg(url).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).spawn()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn the_opener_gets_the_url_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let (opener, told) = (directory.path().join("opener"), directory.path().join("told"));
        let script = format!("#!/bin/sh\nprintf '%s|' \"$#\" \"$@\" > '{}'\ncat\n", told.display());
        fs::write(&opener, script).unwrap();
        fs::set_permissions(&opener, fs::Permissions::from_mode(0o755)).unwrap();
        let url = "http://127.0.0.1:50051/#'$(id)&a=%20";
        // Another test may be starting a process, which has the script open for writing.
        let mut child = loop {
            match start(opener.as_os_str(), url) {
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {}
                started => break started.unwrap(),
            }
        };
        let group = rustix::process::getpgid(Some(rustix::process::Pid::from_child(&child))).unwrap();
        assert_eq!(group, rustix::process::Pid::from_child(&child));
        // It ends although it reads: the terminal is not its input.
        assert!(child.wait().unwrap().success());
        assert_eq!(fs::read_to_string(told).unwrap(), format!("1|{url}|"));
    }

    #[test]
    fn only_pages_are_opened() {
        for wrong in ["file:///etc/passwd", "--help", "", "127.0.0.1:50051", "http://a b", "http://a\n"] {
            assert_eq!(start("true".as_ref(), wrong).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{wrong}");
        }
        assert_eq!(start("no-such-opener".as_ref(), "http://a").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_goes_wrong_is_only_noted() {
        open_in_browser("not a page");
    }
}
