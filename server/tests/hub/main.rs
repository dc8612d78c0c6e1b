//! Models from a hub: one on this machine, with what can go wrong with one.
#![expect(clippy::unwrap_used, reason = "a test that cannot start its program has failed")]

mod stand_in;
#[path = "../support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use stand_in::{COMMIT, Fault, REPOSITORY, StandIn, contents};
use support::{program, stderr, stdout};

const FILES: [&str; 5] = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// A home for models, and a hub.
struct Place {
    home: tempfile::TempDir,
    hub: StandIn,
}

impl Place {
    fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap(), hub: StandIn::start() }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = program();
        command.args(args).env("HF_HOME", self.home.path());
        command.env("HF_ENDPOINT", self.hub.address());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn pull(&self) -> Output {
        self.run(&["pull", REPOSITORY])
    }

    fn repository(&self) -> PathBuf {
        self.home.path().join("hub/models--tiny--phi")
    }

    fn snapshot(&self) -> PathBuf {
        self.repository().join("snapshots").join(COMMIT)
    }

    /// The pull fails with one line that begins with the model and says all of this.
    fn assert_pull_fails(&self, wanted: &[&str]) {
        assert_fails(&self.pull(), wanted);
    }
}

fn assert_fails(output: &Output, wanted: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with(&format!("error: {REPOSITORY}")), "{text}");
    assert_eq!(stdout(output), "");
    for want in wanted {
        assert!(text.contains(want), "{want}: {text}");
    }
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", stderr(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn ask(model: &str) -> [&str; 6] {
    ["generate", "--model", model, "--chat", "--prompt", "What is the capital of France?"]
}

#[test]
fn a_model_is_pulled_once_and_then_served() {
    let place = Place::new();
    let pulled = json(&place.run(&["pull", REPOSITORY, "--json"]));
    assert_eq!(pulled["folder"], place.snapshot().to_str().unwrap());
    assert_eq!((&pulled["commit"], &pulled["revision"]), (&COMMIT.into(), &"main".into()));
    let files = pulled["files"].as_array().unwrap();
    let names: Vec<_> = files.iter().map(|file| file["name"].as_str().unwrap()).collect();
    // Only what is needed: the repository holds other files too.
    assert_eq!(names, FILES);
    for file in files {
        let name = file["name"].as_str().unwrap();
        let content = contents(name).unwrap();
        assert_eq!(file["bytes"], content.len(), "{name}");
        assert!(std::fs::read(place.snapshot().join(name)).unwrap() == content, "{name}");
    }
    assert_eq!(std::fs::read_to_string(place.repository().join("refs/main")).unwrap(), COMMIT);
    place.hub.take_log();

    // The second time only the listing is asked for.
    let answer = place.run(&ask(REPOSITORY));
    assert_eq!(stdout(&answer), "The capital of France is Paris.\n", "{}", stderr(&answer));
    assert_eq!(place.hub.take_log(), ["GET /api/models/tiny/phi/revision/main - -"]);

    // A commit never changes: nothing is asked. Neither is it offline.
    let pinned = format!("{REPOSITORY}@{COMMIT}");
    let answer = place.run(&ask(&pinned));
    assert_eq!(stdout(&answer), "The capital of France is Paris.\n", "{}", stderr(&answer));
    let offline = place.command(&ask(REPOSITORY)).env("HF_HUB_OFFLINE", "1").output().unwrap();
    assert_eq!(stdout(&offline), "The capital of France is Paris.\n", "{}", stderr(&offline));
    assert_eq!(place.hub.take_log(), [""; 0]);

    // Without a hub what is there serves, with a word about it.
    let gone = place.command(&ask(REPOSITORY)).env("HF_ENDPOINT", "http://127.0.0.1:1").output();
    let gone = gone.unwrap();
    assert_eq!(stdout(&gone), "The capital of France is Paris.\n", "{}", stderr(&gone));
    assert!(stderr(&gone).contains("using what is cached"), "{}", stderr(&gone));
}

#[test]
fn a_command_fetches_the_model_it_names() {
    let place = Place::new();
    let answer = place.command(&ask("tiny/phi@v1/x")).env("HF_TOKEN", "secret").output().unwrap();
    assert_eq!(stdout(&answer), "The capital of France is Paris.\n", "{}", stderr(&answer));
    assert!(stderr(&answer).contains("downloading model.safetensors"), "{}", stderr(&answer));
    let log = place.hub.take_log();
    assert_eq!(log[0], "GET /api/models/tiny/phi/revision/v1%2Fx - token");
    // The hub gets the token, whoever holds its large files does not.
    let weights: Vec<_> = log.iter().filter(|line| line.contains("safetensors")).collect();
    let resolve = format!("/tiny/phi/resolve/{COMMIT}/model.safetensors - token");
    let cdn = "GET /cdn/model.safetensors - -";
    assert_eq!(weights, [&format!("HEAD {resolve}"), &format!("GET {resolve}"), cdn]);
    assert_eq!(std::fs::read_to_string(place.repository().join("refs/v1/x")).unwrap(), COMMIT);
    let draft = ["generate", "--prompt", "x", "--max-tokens", "2", "--draft-model", REPOSITORY];
    let draft = place.run(&draft);
    assert!(draft.status.success(), "{}", stderr(&draft));
}

#[test]
fn the_list_shows_what_is_there() {
    let place = Place::new();
    let list = || -> Vec<Value> {
        let output = place.run(&["list", "--json"]);
        stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let builtin = list();
    assert_eq!(builtin.len(), 3);
    assert_eq!(builtin[0]["model"], "builtin:tiny-phi");
    assert_eq!(builtin[2]["family"], "Dream");
    assert!(builtin[1]["bytes"].as_u64().unwrap() > 4_000_000);
    place.pull();
    let models = list();
    assert_eq!(models.len(), 4);
    let model = &models[3];
    assert_eq!((&model["model"], &model["family"]), (&REPOSITORY.into(), &"phi".into()));
    assert_eq!((&model["commit"], &model["complete"]), (&COMMIT.into(), &true.into()));
    let bytes: usize = FILES.iter().map(|file| contents(file).unwrap().len()).sum();
    assert_eq!(model["bytes"], bytes);
    let modified = model["modified"].as_str().unwrap();
    assert!(modified.starts_with("20") && modified.ends_with('Z'), "{modified}");
    let table = stdout(&place.run(&["list"]));
    let line = table.lines().find(|line| line.starts_with("tiny/phi ")).unwrap();
    assert!(line.contains("phi") && line.contains("0123456789ab"), "{line}");
    std::fs::remove_file(place.snapshot().join("model.safetensors")).unwrap();
    assert_eq!(list()[3]["complete"], false);
    assert!(stdout(&place.run(&["list"])).contains("incomplete"));
    // Another pull brings what is missing; the blob is still there.
    place.hub.take_log();
    place.pull();
    assert_eq!(list()[3]["complete"], true);
    assert!(!place.hub.take_log().iter().any(|line| line.contains("/cdn/")));
}

#[test]
fn a_cut_transfer_is_resumed() {
    let place = Place::new();
    // The first connection brings most, the next one nothing.
    place.hub.set(Fault::Cut(1_000_000));
    let size = contents("model.safetensors").unwrap().len();
    let after = format!("after 1000000 of {size} bytes");
    place.assert_pull_fails(&["model.safetensors", "broke off", &after, "to resume"]);
    assert!(!place.snapshot().join("model.safetensors").exists());
    place.hub.set(Fault::None);
    place.hub.take_log();
    let output = place.pull();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
    let log = place.hub.take_log();
    assert!(log.contains(&"GET /cdn/model.safetensors bytes=1000000- -".to_owned()), "{log:?}");
    assert!(!log.iter().any(|line| line.contains("tokenizer.json")), "{log:?}");
    let found = std::fs::read(place.snapshot().join("model.safetensors")).unwrap();
    assert!(found == contents("model.safetensors").unwrap());
}

#[test]
fn damaged_transfers_are_found_out_and_not_kept() {
    let place = Place::new();
    place.hub.set(Fault::OtherBytes);
    place.assert_pull_fails(&["model.safetensors: its SHA-256 is", "run the command again"]);
    place.hub.set(Fault::MoreBytes);
    place.assert_pull_fails(&["model.safetensors", "bytes arrived, expected"]);
    // A left-over that cannot be a beginning is not built upon.
    let blobs = place.repository().join("blobs");
    let mut partial: Vec<PathBuf> =
        std::fs::read_dir(&blobs).unwrap().map(|entry| entry.unwrap().path()).collect();
    partial.retain(|path| path.extension().is_some_and(|e| e == "incomplete"));
    assert_eq!(partial.len(), 1);
    std::fs::write(&partial[0], vec![7; 5_000_000]).unwrap();
    place.hub.set(Fault::None);
    let output = place.pull();
    assert!(output.status.success(), "{}", stderr(&output));
    let found = std::fs::read(place.snapshot().join("model.safetensors")).unwrap();
    assert!(found == contents("model.safetensors").unwrap());
    assert!(!partial[0].exists());
}

#[test]
fn what_the_hub_refuses_is_told_with_what_helps() {
    let place = Place::new();
    for (fault, wanted) in [
        (Fault::Listing(404), ["no such repository or revision", "HF_TOKEN"]),
        (Fault::Listing(401), ["access is restricted (401)", "set HF_TOKEN"]),
        (Fault::File(403), ["config.json: access is restricted (403)", "set HF_TOKEN"]),
        (Fault::File(404), ["config.json", "no such file"]),
        (Fault::Listing(429), ["429, too many requests", "in 17 seconds"]),
        (Fault::Listing(503), ["answers 503", "try again later"]),
        (Fault::Nonsense, ["answers no listing", "is HF_ENDPOINT a model hub?"]),
        (Fault::Etag("../../../x"), ["config.json: the etag", "../../../x"]),
        (Fault::Family, ["model_type 'gpt2' is not supported", "llada"]),
        (Fault::Shard("../x"), ["model.safetensors.index.json", "'../x' does not name a file"]),
        (Fault::Shard("b.safetensors"), ["b.safetensors", "no such file"]),
    ] {
        // A new cache each time: what is there is not asked for again.
        let place = Place { home: tempfile::tempdir().unwrap(), ..Place::new() };
        place.hub.set(fault);
        place.assert_pull_fails(&wanted);
        assert!(!place.hub.take_log().iter().any(|line| line.contains("cdn")));
    }
    let output = place.run(&["pull", "tiny/phi@other"]);
    assert_fails(&output, &["tiny/phi@other: no such repository or revision"]);
    place.hub.set(Fault::Listing(403));
    let output = place.command(&["pull", REPOSITORY]).env("HF_TOKEN", "x").output().unwrap();
    assert_fails(&output, &["access is restricted (403)", "check that HF_TOKEN may read it"]);
    let mut command = place.command(&["pull", REPOSITORY]);
    let output = command.env("HF_ENDPOINT", "http://127.0.0.1:1").output().unwrap();
    assert_fails(&output, &["cannot reach http://127.0.0.1:1", "HTTPS_PROXY"]);
    // A file where the cache should be.
    std::fs::write(place.home.path().join("hub"), "").unwrap();
    place.hub.set(Fault::None);
    place.assert_pull_fails(&["config.json", "hub/models--tiny--phi/blobs"]);
}

#[test]
fn offline_nothing_is_asked() {
    let place = Place::new();
    let pull = || place.command(&["pull", REPOSITORY]).env("HF_HUB_OFFLINE", "1").output().unwrap();
    assert_fails(&pull(), &["HF_HUB_OFFLINE is set", "does not hold the model", "hub"]);
    place.pull();
    assert!(pull().status.success());
    std::fs::remove_file(place.snapshot().join("tokenizer.json")).unwrap();
    place.hub.take_log();
    assert_fails(&pull(), &["does not hold its tokenizer.json"]);
    assert_eq!(place.hub.take_log(), [""; 0]);
}

#[test]
fn two_may_pull_at_once_and_the_cache_may_be_elsewhere() {
    let place = Place::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let start = || {
        let mut command = place.command(&["pull", REPOSITORY]);
        command.env("HF_HUB_CACHE", elsewhere.path()).spawn().unwrap()
    };
    let mut running = [start(), start()];
    assert!(running.iter_mut().all(|child| child.wait().unwrap().success()));
    let weights = format!("models--tiny--phi/snapshots/{COMMIT}/model.safetensors");
    assert!(elsewhere.path().join(&weights).exists());
    let once = place.hub.take_log();
    let once = once.iter().filter(|line| line.starts_with("GET /cdn/model")).count();
    assert_eq!(once, 1);
    assert!(!place.home.path().join("hub").exists());
    // Links are relative.
    let target = std::fs::read_link(elsewhere.path().join(weights)).unwrap();
    assert!(target.starts_with("../../blobs"), "{}", target.display());
}

#[test]
fn a_folder_stays_a_folder_and_a_wrong_name_is_told() {
    let place = Place::new();
    let here = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(here.path().join("tiny/phi")).unwrap();
    let output = place.command(&ask(REPOSITORY)).current_dir(here.path()).output().unwrap();
    assert!(stderr(&output).contains("tiny/phi: no config.json"), "{}", stderr(&output));
    assert_eq!(place.hub.take_log(), [""; 0]);
    for (model, wanted) in [
        ("builtin:tiny-phi", "it is here already"),
        ("phi", "expected ORG/NAME"),
        ("../x/y", "expected ORG/NAME"),
    ] {
        let output = place.run(&["pull", model]);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains(wanted), "{}", stderr(&output));
    }
    assert!(!Path::new("tiny").exists());
}
