//! Every mistake in a recipe is one error that names the file, the line and the key, and what to do.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::Path;

use mvm_image::{Error, ImageSource, ImageStore};

/// What the build says about a recipe with this text after `[image] name = "app"`, which takes the first
/// two lines. The lock is that of `minimal`.
fn complaint(rest: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("recipe");
    fs::create_dir(&recipe).unwrap();
    fs::write(recipe.join("image.toml"), format!("[image]\nname = \"app\"\n{rest}")).unwrap();
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../images/minimal/image.lock");
    fs::copy(lock, recipe.join("image.lock")).unwrap();
    complaint_about(&recipe)
}

fn complaint_about(recipe: &Path) -> String {
    let folder = tempfile::tempdir().unwrap();
    let store = ImageStore::open(folder.path(), &folder.path().join("cache")).unwrap();
    let error = store.build(&ImageSource::Path(recipe.to_owned()), &|step| panic!("{step:?}"));
    let text = error.unwrap_err().to_string();
    assert!(store.list().unwrap().is_empty());
    // Relative to the recipe's folder, whose name differs from run to run.
    text.replace(&format!("{}/", recipe.display()), "")
}

#[test]
fn the_text_of_a_recipe() {
    let service = "[[services]]\nname = \"web\"\ncommand = [\"/usr/bin/web\"]\n";
    let user = "[[users]]\nname = \"web\"\nuid = 1000\n";
    let file =
        |source: &str, target: &str| format!("[[files]]\nsource = \"{source}\"\ntarget = \"{target}\"\n");
    let prewarm = "[prewarm]\ncommand = [\"/usr/bin/warm\"]\n";
    let cases: &[(&str, &str, &str)] = &[
        ("packages = [", "image.toml:3: ", "(syntax)"),
        ("color = \"red\"", "image.toml:3: image.color: ", "unknown field"),
        ("packages = 3", "image.toml:3: image.packages: ", "expected a sequence"),
        ("packages = [\n\"libc6\",\n\"../x\"]", "image.toml:5: image.packages: ", "`../x`"),
        (&format!("{service}shell = true"), "services[0].shell: ", "unknown field"),
        (&format!("{service}{service}"), "image.toml:6: services[1].name: ", "already a service `web`"),
        (&format!("{service}user = \"nn\""), "image.toml:3: services[0].user: ", "no user `nn`"),
        (
            &format!("{service}[services.ready]\ntimeout_seconds = \"a\""),
            "image.toml:7: services[0].ready.timeout_seconds: ",
            "invalid type",
        ),
        (&format!("{service}[services.ready]\n"), "services[0].ready: ", "exactly one of"),
        (
            &format!("{service}env_from_secrets = [\"KEY\"]"),
            "image.toml:3: services[0].env_from_secrets: ",
            "`KEY`",
        ),
        ("[[services]]\nname = \"a\"\ncommand = [\"a\"]", "services[0].command: ", "absolute path"),
        (&format!("{service}adapter = \"oc\""), "image.toml:6: services[0].adapter: ", "`openclaw`"),
        (&format!("{service}adapter = \"openclaw\""), "services[0].adapter: ", "OPENCLAW_CONFIG_PATH"),
        ("[npm]\npackages = [\"a@latest\"]", "image.toml:3: npm.packages: ", "`name@1.2.3`"),
        ("[npm]\npackages = []\nprune = [\"***\"]", "image.toml:3: npm.prune: ", "`***`"),
        ("[npm]\npackages = []\nstrip = [\"/bin/sh\"]", "image.toml:3: npm.strip: ", "node_modules"),
        ("[prewarm]\nuser = \"root\"", "image.toml:3: prewarm: ", "missing field `command`"),
        ("[prewarm]\ncommand = [\"warm\"]", "image.toml:3: prewarm.command: ", "absolute path"),
        (&(prewarm.to_owned() + "timeout_seconds = 0"), "prewarm.timeout_seconds: ", "1 second"),
        (&(prewarm.to_owned() + "shell = true"), "image.toml:5: prewarm.shell: ", "unknown field"),
        (&(prewarm.to_owned() + "user = \"nn\""), "image.toml:3: prewarm.user: ", "no user `nn`"),
        (
            &(prewarm.to_owned() + "reseed_signal = \"SIGKILL\""),
            "image.toml:5: prewarm.reseed_signal: ",
            "`SIGKILL`, expected one of `SIGHUP`, `SIGUSR1`, ",
        ),
        (&format!("{user}{user}"), "image.toml:6: users[1].name: ", "already a user `web`"),
        ("[[users]]\nname = \"a\"\nuid = 0", "image.toml:3: users[0].uid: ", "0 is not in"),
        (&file("../x", "/x"), "image.toml:4: files[0].source: ", "inside the recipe's folder"),
        (&file("x", "x"), "image.toml:5: files[0].target: ", "absolute path"),
        (&file("x", "/data/x"), "image.toml:5: files[0].target: ", "under /data"),
        (&file("none", "/x"), "image.toml:4: files[0].source: ", "none: No such file"),
        (&(file("x", "/x") + "mode = \"rw\""), "image.toml:6: files[0].mode: ", "`rw`"),
    ];
    for (rest, place, message) in cases {
        let text = complaint(rest);
        assert!(text.starts_with("image.toml:"), "{rest}: {text}");
        assert!(text.contains(place) && text.contains(message), "{rest}: {text}");
    }
}

#[test]
fn packages_that_are_not_locked() {
    let text = complaint("packages = [\"nginx\"]");
    assert!(text.contains("image.lock: ") && text.contains("`nginx`"), "{text}");
    assert!(text.contains("scripts/update-locks"), "{text}");
}

#[test]
fn packages_of_npm_that_are_not_locked() {
    let text = complaint("[npm]\npackages = [\"is-odd@3.0.1\"]");
    assert!(text.contains("package-lock.json: is missing; run scripts/update-locks"), "{text}");
}

#[test]
fn locks_that_are_not_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path();
    fs::write(recipe.join("image.toml"), "[image]\nname = \"app\"\n").unwrap();
    assert!(complaint_about(recipe).contains("image.lock: is missing; run scripts/update-locks"));
    let head = "timestamp = \"20260101T000000Z\"\nkernel = \"k\"\npackage = []\n";
    fs::write(recipe.join("image.lock"), format!("version = 2\n{head}")).unwrap();
    assert!(complaint_about(recipe).contains("has version 2, not 1"));
    fs::write(recipe.join("image.lock"), format!("version = 1\n{head}")).unwrap();
    assert!(complaint_about(recipe).contains("kernel's package `k` is not in it"));
}

#[test]
fn images_that_there_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let store = ImageStore::open(folder.path(), &folder.path().join("cache")).unwrap();
    let source = ImageSource::BuiltIn("windows".to_owned());
    let error = store.build(&source, &|_| ()).unwrap_err();
    assert!(matches!(error, Error::UnknownImage { .. }));
    assert!(error.to_string().contains("minimal, openclaw, python"), "{error}");
    assert!(complaint("base = \"windows\"").contains("`windows`"));
}
