//! What the lock file promises: GPU builds need nothing that is not a crate.

#![expect(clippy::unwrap_used, reason = "what fails in a test's preparation fails the test")]

/// The `[[package]]` entries of the workspace's lock file.
fn packages() -> Vec<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.lock");
    let lock = std::fs::read_to_string(path).unwrap();
    lock.split("[[package]]\n").skip(1).map(str::to_owned).collect()
}

fn named<'a>(packages: &'a [String], name: &str) -> Vec<&'a String> {
    let line = format!("name = \"{name}\"\n");
    packages.iter().filter(|entry| entry.starts_with(&line)).collect()
}

#[test]
fn no_prebuilt_llvm_is_locked() {
    let packages = packages();
    assert!(packages.len() > 100, "{} packages", packages.len());
    assert!(named(&packages, "tracel-llvm-bundler").is_empty());
    // An entry without a source is a path in this repository: the stub.
    let llvm = named(&packages, "cubecl-llvm");
    assert_eq!(llvm.len(), 1);
    assert!(!llvm[0].contains("source = "), "{}", llvm[0]);
}

#[test]
fn the_stub_matches_the_one_locked_cubecl() {
    let packages = packages();
    for name in ["cubecl", "cubecl-cuda", "cubecl-llvm", "cubecl-wgpu"] {
        let entries = named(&packages, name);
        assert_eq!(entries.len(), 1, "{name}");
        assert!(entries[0].contains("version = \"0.11.3\""), "{}", entries[0]);
    }
}
