//! `enforcer check`.

use std::{io, path::PathBuf};

use clap::Args;
use enforcer_policy::{
    compile::{CompileError, Compiled, Compiler, PathNumbers},
    explain::{CaseResult, reason_names, run_cases},
    model::Policy,
    render,
};

use super::{Failure, Format, Outcome, PolicyArguments, print_json, print_result};
use crate::{
    api::{CheckResult, Document, ErrorCode, NodeReport, PolicyProblem},
    files,
};

/// Read a policy, say what was understood, and run its cases
///
/// Reads a policy and says what was understood. Nothing is loaded, and no privilege is needed.
///
/// The output fits on a screen; --verbose shows every node, component, path and case. Senders that
/// reach guarded endpoints and include more than one might expect are listed in either case.
///
/// Every error names file, line and column and says what to write instead. With --cases, the
/// policy's own tests run: connections, each with the verdict, path or reason that is expected.
///
/// Example: enforcer check -p policies/control-plane-stacked-etcd.yaml --cases
/// policies/control-plane-stacked-etcd.cases.yaml
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    policy: PolicyArguments,
    /// Compile for this node only, instead of for every node of the inventory
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// A file of cases to run; may be given several times
    #[arg(long, value_name = "FILE")]
    cases: Vec<PathBuf>,
    /// Show all nodes, components, paths and cases
    #[arg(short, long)]
    verbose: bool,
}

/// What a policy means on a node.
fn on_node(
    policy: &Policy,
    compiler: &Compiler<'_>,
    node: &str,
) -> Result<NodeReport, CompileError> {
    let compiled = compiler.compile(node, None, &mut PathNumbers::default())?;
    Ok(NodeReport {
        prefixes: compiled.prefixes.len(),
        parties: compiled.settings.parties,
        port_classes: compiled.settings.classes,
        targets: compiled.settings.targets,
        notes: enforcer_policy::warnings_for_node(policy, &compiled.node),
        node: compiled.node,
    })
}

/// What it means on each node. Nodes with the same result are compiled once, as there may be
/// thousands.
fn all_nodes(policy: &Policy, compiler: &Compiler<'_>) -> Result<Vec<NodeReport>, CompileError> {
    let mut reports: Vec<NodeReport> = Vec::with_capacity(policy.nodes.len());
    for (node, first) in policy.nodes.iter().zip(compiler.alike()) {
        reports.push(match reports.get(first) {
            Some(known) => NodeReport {
                node: node.name.clone(),
                ..known.clone()
            },
            None => on_node(policy, compiler, &node.name)?,
        });
    }
    Ok(reports)
}

pub fn run(arguments: &Arguments, format: Format) -> Outcome {
    match check(arguments, format) {
        // An invalid policy is a result like any other.
        Err(Failure::Policy(errors)) if format == Format::Json && !errors.is_unreadable() => {
            print_json(&Document::new(CheckResult {
                valid: false,
                errors: PolicyProblem::all(&errors),
                policy: None,
                nodes: Vec::new(),
                cases: Vec::new(),
            }))?;
            Err(Failure::No)
        }
        outcome => outcome,
    }
}

fn check(arguments: &Arguments, format: Format) -> Outcome {
    let policy = files::load(&arguments.policy.policy)?;
    let compiler = Compiler::new(&policy).map_err(too_large)?;
    let nodes = match &arguments.node {
        Some(node) => vec![on_node(&policy, &compiler, node).map_err(too_large)?],
        None => all_nodes(&policy, &compiler).map_err(too_large)?,
    };
    let results = run_all_cases(&policy, &compiler, &arguments.cases)?;
    if format == Format::Json {
        print_json(&Document::new(CheckResult {
            valid: true,
            errors: Vec::new(),
            policy: Some(render::summary(&policy)),
            nodes,
            cases: results.clone(),
        }))?;
    } else {
        if arguments.verbose {
            print_policy(&policy, &nodes)?;
        } else {
            print_result(render::brief(&policy).trim_end())?;
        }
        print_cases(&results, arguments.verbose)?;
    }
    if results.iter().all(|result| result.passed) {
        Ok(())
    } else {
        Err(Failure::No)
    }
}

fn run_all_cases(
    policy: &Policy,
    compiler: &Compiler<'_>,
    files: &[PathBuf],
) -> Result<Vec<CaseResult>, Failure> {
    let mut results = Vec::new();
    let mut last: Option<Compiled> = None;
    for cases in files::load_cases(files)? {
        cases.check(policy, &reason_names())?;
        let node = &cases.node.value;
        let compiled = match last.take_if(|known| known.node == *node) {
            Some(known) => known,
            None => compiler
                .compile(node, None, &mut PathNumbers::default())
                .map_err(too_large)?,
        };
        results.extend(run_cases(policy, &compiled, &cases));
        last = Some(compiled);
    }
    Ok(results)
}

fn print_policy(policy: &Policy, nodes: &[NodeReport]) -> Outcome {
    print_result(render::describe(policy).trim_end())?;
    print_result("")?;
    for node in nodes {
        let NodeReport {
            node,
            prefixes,
            parties,
            port_classes,
            targets,
            notes,
        } = node;
        print_result(&format!(
            "{node}: {prefixes} prefixes, {parties} sets of components, {port_classes} classes of \
             ports, {targets} sets of endpoints"
        ))?;
        for note in notes {
            print_result(&format!("  - {note}"))?;
        }
    }
    Ok(())
}

fn print_cases(results: &[CaseResult], all: bool) -> Outcome {
    if !results.is_empty() {
        print_result("")?;
    }
    for result in results {
        let CaseResult {
            name,
            passed,
            expected,
            found,
            ..
        } = result;
        if *passed && !all {
            continue;
        }
        if *passed {
            print_result(&format!("ok      {name}: {found}"))?;
        } else {
            print_result(&format!("FAILED  {name}: expected {expected}, but {found}"))?;
        }
    }
    if !results.is_empty() {
        let passed = results.iter().filter(|result| result.passed).count();
        print_result(&format!("{} cases, {passed} as expected", results.len()))?;
    }
    io::Write::flush(&mut io::stdout())?;
    Ok(())
}

fn too_large(error: CompileError) -> Failure {
    let message = format!("the policy is valid but cannot be compiled: {error}");
    Failure::cannot(ErrorCode::from(&error), message)
}
