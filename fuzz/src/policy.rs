//! The reader and the compiler of policies.

use enforcer_policy::{
    SourceText, cases as path_cases,
    compile::{Compiled, PathNumbers, compile},
    from_texts, render,
};

fn source(bytes: &[u8]) -> [SourceText; 1] {
    [SourceText {
        name: "fuzzed.yaml".to_owned(),
        text: String::from_utf8_lossy(bytes).into_owned(),
    }]
}

/// Reads a policy, and compiles a valid one for each of its nodes.
pub fn policy(bytes: &[u8]) {
    let policy = match from_texts(&source(bytes)) {
        Ok(policy) => policy,
        Err(errors) => {
            assert!(!errors.to_string().is_empty(), "refused without a word");
            return;
        }
    };
    assert!(!render::describe(&policy).is_empty());
    // One node is as good as a hundred, and much faster.
    for node in policy.nodes.iter().take(3) {
        match compile(&policy, &node.name, None, &mut PathNumbers::default()) {
            Ok(compiled) => is_whole(&compiled),
            Err(error) => assert!(!error.to_string().is_empty(), "refused without a word"),
        }
    }
}

/// What the kernel programs take for granted of tables.
fn is_whole(compiled: &Compiled) {
    let settings = &compiled.settings;
    let parties = compiled.party_names.len() as u32;
    for party in [settings.own, settings.local, settings.pods] {
        assert!(party < parties, "party {party} of {parties}");
    }
    assert_eq!(
        compiled.targets.len() as u32,
        parties * settings.classes,
        "a target for each party and class"
    );
    for class in &compiled.classes {
        assert!(u32::from(*class) < settings.classes, "class {class}");
    }
}

/// Reads a file of path cases.
pub fn cases(bytes: &[u8]) {
    if let Err(errors) = path_cases::from_texts(&source(bytes)) {
        assert!(!errors.to_string().is_empty(), "refused without a word");
    }
}
