//! `votestream completions` and `votestream man`: what shells and `man` know about the command line.
//!
//! Owns nothing but where both are written. Must never hold a text about a command: all of it is made from the definitions in
//! `args`, so it is as true as `--help`.

use std::{fs, io, path::Path};

use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::{
    Man,
    roff::{Roff, bold, roman},
};

use crate::{
    args::{Cli, EXIT_CODES},
    failure::{Answer, Failure, Outcome},
    output,
};

/// Prints the script of a shell.
pub(super) fn completions(shell: Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "votestream", &mut script);
    output::bytes(&script)?;
    Ok(Answer::Yes)
}

/// Prints the page of `votestream`, or writes the pages of all commands.
pub(super) fn pages(directory: Option<&Path>) -> Outcome {
    let first = first_page().map_err(|error| Failure::failed(format!("cannot make the page: {error}")))?;
    match directory {
        None => output::bytes(&first)?,
        Some(directory) => {
            let written = fs::create_dir_all(directory)
                .and_then(|()| clap_mangen::generate_to(Cli::command(), directory))
                .and_then(|()| fs::write(directory.join("votestream.1"), first));
            written.map_err(|error| Failure::usage(format!("{}: {error}", directory.display())))?;
        }
    }
    Ok(Answer::Yes)
}

/// The page votestream(1), with the exit codes as `man` shows them.
fn first_page() -> io::Result<Vec<u8>> {
    let command = Cli::command().disable_help_subcommand(true).after_help(None).after_long_help(None);
    let mut page = Vec::new();
    Man::new(command).render(&mut page)?;
    exit_status().to_writer(&mut page)?;
    Ok(page)
}

fn exit_status() -> Roff {
    let mut section = Roff::new();
    section.control("SH", ["EXIT STATUS"]);
    let mut is_list = true;
    for line in EXIT_CODES.lines().skip(1) {
        if let Some((code, meaning)) = line.strip_prefix("  ").and_then(|line| line.split_once("  "))
            && !code.is_empty()
            && is_list
        {
            section.control("TP", []).text([bold(code)]).text([roman(meaning.trim_start())]);
            continue;
        }
        // The rest of a meaning is indented.
        if is_list && !line.starts_with(' ') {
            is_list = false;
            section.control("PP", []);
        }
        section.text([roman(line.trim_start())]);
    }
    section
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_a_paragraph_for_each_exit_code() {
        let section = exit_status().render();
        for code in ["0", "1", "2", "3", "128 + N"] {
            assert!(section.contains(&format!("\n.TP\n\\fB{code}\\fR\n")), "{section}");
        }
        assert!(
            section.contains("\nwas changed, a preflight is no\\-go\n.TP\n") && section.contains("\n.PP\n`up` is done"),
            "{section}"
        );
        let page = String::from_utf8(first_page().unwrap()).unwrap();
        assert!(page.contains("votestream\\-poll(1)") && !page.contains("votestream\\-help"), "{page}");
    }
}
