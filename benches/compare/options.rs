//! The command line of `scripts/bench`.

use crate::rows::ROWS;

#[derive(Debug)]
pub(crate) struct Options {
    /// Empty: all rows.
    only: Vec<String>,
    pub(crate) rounds: usize,
    pub(crate) quick: bool,
    pub(crate) bootstrap: Option<String>,
    pub(crate) report_only: bool,
    pub(crate) write_docs: bool,
}

impl Options {
    pub(crate) fn wants(&self, row: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == row)
    }

    /// So many records, or a tenth of it.
    pub(crate) fn records(&self, whole: u64) -> u64 {
        if self.quick { whole / 10 } else { whole }
    }
}

/// Ends the process where it cannot be understood.
pub(crate) fn read(arguments: &[String]) -> Options {
    let mut options = Options {
        only: Vec::new(),
        rounds: 0,
        quick: false,
        bootstrap: None,
        report_only: false,
        write_docs: false,
    };
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let mut value = || {
            rest.next()
                .unwrap_or_else(|| refuse(&format!("{argument} needs a value")))
        };
        match argument.as_str() {
            "--only" => options.only = value().split(',').map(str::to_owned).collect(),
            "--rounds" => {
                let text = value();
                options.rounds = text
                    .parse()
                    .ok()
                    .filter(|rounds| *rounds > 0)
                    .unwrap_or_else(|| refuse(&format!("--rounds {text}: 1 or more")));
            }
            "--bootstrap" => options.bootstrap = Some(value().clone()),
            "--quick" => options.quick = true,
            "--report" => options.report_only = true,
            "--write-docs" => options.write_docs = true,
            other => refuse(&format!("unknown option {other}")),
        }
    }
    let names: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
    if let Some(unknown) = options
        .only
        .iter()
        .find(|row| !names.contains(&row.as_str()))
    {
        refuse(&format!("no row is called {unknown}: {}", names.join(", ")));
    }
    if options.rounds == 0 {
        options.rounds = if options.quick { 1 } else { 5 };
    }
    options
}

fn refuse(why: &str) -> ! {
    eprintln!("scripts/bench: {why}; --help tells the options");
    std::process::exit(2);
}
