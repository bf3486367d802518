//! Errors in the arguments, for people and for programs.

use std::{
    borrow::Cow,
    io::{self, Write as _},
};

use clap::error::ErrorKind;

use super::{CANNOT, Failure, Format, print_error};
use crate::api::{Error, ErrorCode};

/// Prints clap's message: help, the version, or an error in the arguments. Returns the exit status.
pub(super) fn report(error: &clap::Error, format: Format) -> u8 {
    let status = u8::try_from(error.exit_code()).unwrap_or(CANNOT);
    if error.use_stderr() && format == Format::Json {
        print_error(error_of(error));
        return status;
    }
    match error.print().and_then(|()| io::stdout().flush()) {
        Ok(()) => status,
        Err(error) => Failure::from(error).report(format),
    }
}

fn error_of(error: &clap::Error) -> Error {
    let text = error.render().to_string();
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return Error {
            help: Some(text.trim().to_owned()),
            ..Error::new(ErrorCode::Usage, "a subcommand is missing")
        };
    }
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let (message, help) = text.split_once("\n\n").unwrap_or((text, ""));
    // It may be a sentence and a list.
    let words: Vec<&str> = message.split_whitespace().collect();
    let help = help.trim();
    Error {
        help: (!help.is_empty()).then(|| help.to_owned()),
        ..Error::new(ErrorCode::Usage, words.join(" "))
    }
}

/// The format that the arguments ask for, even if everything else in them is wrong.
pub(super) fn format_of<'a>(arguments: impl IntoIterator<Item = Cow<'a, str>>) -> Format {
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            break;
        }
        let value = match argument.strip_prefix("--") {
            Some("output") => Some(""),
            Some(long) => long.strip_prefix("output="),
            None => short_value(&argument),
        };
        let is_json = match value {
            Some("") => arguments.next().is_some_and(|next| next == "json"),
            Some(value) => value == "json",
            None => false,
        };
        if is_json {
            return Format::Json;
        }
    }
    Format::Text
}

/// The value of `-o`, which may follow other flags in one argument.
fn short_value(argument: &str) -> Option<&str> {
    const WITHOUT_VALUE: [char; 4] = ['f', 'h', 'v', 'V'];
    let flags = argument.strip_prefix('-')?;
    let value = flags.trim_start_matches(WITHOUT_VALUE).strip_prefix('o')?;
    Some(value.strip_prefix('=').unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn the_json_format_is_found_in_invalid_arguments() {
        for (arguments, expected) in [
            ("status --nonsense -o json", Format::Json),
            ("-ojson frobnicate", Format::Json),
            ("-o=json", Format::Json),
            ("events -fojson --x", Format::Json),
            ("check --output json", Format::Json),
            ("check --output=json", Format::Json),
            ("check -o text", Format::Text),
            ("check -o", Format::Text),
            ("check -p json", Format::Text),
            ("explain -- -o json", Format::Text),
            ("", Format::Text),
        ] {
            let found = format_of(arguments.split_whitespace().map(Cow::from));
            assert_eq!(found, expected, "{arguments}");
        }
    }

    #[test]
    fn errors_of_clap_become_a_sentence_and_help() {
        let error = |arguments: &[&str]| {
            let arguments = ["enforcer"].iter().chain(arguments);
            error_of(&Cli::try_parse_from(arguments).unwrap_err())
        };
        let missing = error(&["check"]);
        assert_eq!(missing.code, ErrorCode::Usage);
        assert_eq!(
            missing.message,
            "the following required arguments were not provided: --policy <FILE|DIR>"
        );
        assert!(missing.help.is_some_and(|help| help.contains("Usage:")));
        let unknown = error(&["status", "--nonsense"]);
        assert!(unknown.message.contains("'--nonsense'"), "{unknown:?}");
        assert_eq!(error(&[]).message, "a subcommand is missing");
    }
}
