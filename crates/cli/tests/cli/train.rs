//! Training from the command line: an ended run goes on exactly, a full disk and another base model lose nothing.

use crate::{error_line, run, stdout, tiny_model};
#[cfg(unix)]
use crate::{lapidary, run_on_a_full_disk};
use std::fs;
use std::path::Path;
#[cfg(unix)]
use std::process::Command;

/// A directory with a base model, forty sentences, a validation set and a recipe of six steps.
pub(crate) fn workshop() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    tiny_model::write(&dir.path().join("base"), 1);
    let subjects = ["A man", "A woman", "The dog", "My cat", "Nobody"];
    let rest =
        ["sleeps.", "plays a guitar.", "reads the news.", "runs.", "sees it.", "is here.", "eats.", "went home."];
    let lines: Vec<String> = subjects.iter().flat_map(|a| rest.iter().map(move |b| format!("{a} {b}"))).collect();
    fs::write(dir.path().join("texts.txt"), lines.join("\n")).unwrap();
    let pair = |i: usize| format!("{:?},{:?},{}\n", lines[i], lines[(i * 7 + 3) % 40], i % 5);
    let pairs: String = (0..12).map(pair).collect();
    fs::write(dir.path().join("sts.csv"), format!("sentence1,sentence2,score\n{pairs}")).unwrap();
    let recipe = "model = 'base'\n[method]\nname = 'gem'\nsettings = { num_special_tokens = 2 }\n\
                  [data]\npaths = ['texts.txt']\n[budget]\nrows = 24\nbatch_rows = 4\nmax_tokens = 40\n\
                  [lora]\nr = 2\nlora_alpha = 4.0\ntarget_modules = ['q_proj', 'v_proj']\n\
                  [validation]\nsts = 'sts.csv'\nevery_steps = 3\n";
    fs::write(dir.path().join("recipe.toml"), recipe).unwrap();
    dir
}

fn train(out: &str, more: &[&str]) -> Vec<String> {
    let args = ["train", "recipe.toml", "--out", out, "--checkpoint-every", "2"];
    args.iter().chain(more).map(|&arg| arg.to_owned()).collect()
}

fn files_under(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

/// The files of a run's model but those that tell how long it took.
fn model_files(run: &Path) -> Vec<(String, Vec<u8>)> {
    let (clocked, files): (Vec<_>, Vec<_>) = files_under(&run.join("model"))
        .into_iter()
        .partition(|(name, _)| ["metrics.jsonl", "training.json"].contains(&name.as_str()));
    assert_eq!(clocked.len(), 2);
    files
}

/// A hundred steps with a checkpoint after every second.
const LONG: [&str; 4] = ["--set", "budget.rows=400", "--set", "validation.every_steps=0"];

/// Starts a long run and hands it over once its fifth checkpoint is there.
#[cfg(unix)]
fn started(dir: &Path, out: &str) -> std::process::Child {
    let mut command = lapidary(dir);
    let piped =
        command.args(train(out, &LONG)).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = piped.spawn().unwrap();
    // Old checkpoints are removed: any from the tenth step on will do.
    let late = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().to_str().unwrap() >= "step-00000010";
    while !fs::read_dir(dir.join(out).join("checkpoints")).is_ok_and(|mut entries| entries.any(late)) {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before its tenth step");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child
}

#[cfg(unix)]
#[test]
fn a_killed_run_goes_on_and_gives_the_same_model() {
    use std::os::unix::process::ExitStatusExt as _;
    let dir = workshop();
    let dir = dir.path();
    stdout(run(dir, &train("straight", &LONG)));
    let mut child = started(dir, "killed");
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9), "the run was over before it could be killed");
    // What a kill in the middle of a checkpoint leaves is cleared away.
    fs::create_dir(dir.join("killed/checkpoints/step-00000099.tmp-1-0")).unwrap();
    stdout(run(dir, &train("killed", &LONG)));
    assert_eq!(model_files(&dir.join("killed")), model_files(&dir.join("straight")));
    let left = fs::read_dir(dir.join("killed/checkpoints")).unwrap().map(|entry| entry.unwrap().file_name());
    let mut left: Vec<_> = left.collect();
    left.sort();
    assert_eq!(left, ["step-00000098", "step-00000100"]);
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_a_checkpoint() {
    let dir = workshop();
    let dir = dir.path();
    let child = started(dir, "ended");
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("the same command goes on from there"), "{stderr}");
    assert!(!dir.join("ended/model").exists());
    stdout(run(dir, &train("straight", &LONG)));
    stdout(run(dir, &train("ended", &LONG)));
    assert_eq!(model_files(&dir.join("ended")), model_files(&dir.join("straight")));
}

#[test]
fn an_ended_run_goes_on_and_gives_the_same_model() {
    let dir = workshop();
    let dir = dir.path();
    let model = stdout(run(dir, &train("straight", &[])));
    assert_eq!(model, "straight/model\n");
    stdout(run(dir, &train("ended", &["--stop-after-steps", "3"])));
    assert!(!dir.join("ended/model").exists());
    let json = |path: &str| -> serde_json::Value {
        serde_json::from_str(&fs::read_to_string(dir.join("ended").join(path)).unwrap()).unwrap()
    };
    let first = json("checkpoints/step-00000003/state.json");
    let output = run(dir, &train("ended", &[]));
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(stderr.contains("going on after step 3"), "{stderr}");
    stdout(output);
    assert_eq!(model_files(&dir.join("straight")), model_files(&dir.join("ended")));
    let steps = |run: &str| -> Vec<u64> {
        let text = fs::read_to_string(dir.join(run).join("metrics.jsonl")).unwrap();
        let rows = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        rows.map(|row| row["step"].as_u64().unwrap()).collect()
    };
    assert_eq!(steps("straight"), [1, 2, 3, 3, 4, 5, 6, 6]);
    assert_eq!(steps("ended"), steps("straight"));
    // What the first part has taken is in what the run has cost.
    let (last, all) = (json("checkpoints/step-00000006/state.json"), json("model/training.json"));
    let cpu_secs = [&first, &json("checkpoints/step-00000004/state.json"), &last, &all]
        .map(|record| record["cpu_secs"].as_f64().unwrap());
    assert!(0.0 < cpu_secs[0] && cpu_secs.is_sorted_by(|a, b| a < b), "{cpu_secs:?}");
    assert_eq!((&all["steps"], &all["train_secs"]), (&last["step"], &last["train_secs"]));
    for picture in ["loss.png", "validation.png"] {
        assert!(fs::read(dir.join("ended").join(picture)).unwrap().starts_with(b"\x89PNG"));
    }
    // The same command once more: nothing left to do, and that is no error.
    assert_eq!(stdout(run(dir, &train("ended", &[]))), "ended/model\n");
    // The model embeds, and says so when its base model is another.
    let vectors = stdout(run(dir, &["embed", "--model", "ended/model", "A man sleeps."]));
    assert!(vectors.starts_with("{\"embedding\":["), "{vectors}");
    tiny_model::write(&dir.join("other"), 2);
    let message = error_line(&run(dir, &["embed", "--model", "ended/model", "--base", "other", "A man sleeps."]));
    assert!(message.starts_with("error: ended/model: made for a base model with fingerprint "), "{message}");
    let message = error_line(&run(dir, &["embed", "--model", "ended/model", "--method", "mean", "A man sleeps."]));
    assert!(message.contains("brings its own"), "{message}");
}

#[test]
fn another_recipe_in_the_same_directory_is_refused() {
    let dir = workshop();
    let dir = dir.path();
    stdout(run(dir, &train("run", &["--stop-after-steps", "2"])));
    let before = files_under(&dir.join("run/checkpoints/step-00000002"));
    let message = error_line(&run(dir, &train("run", &["--set", "seed=7"])));
    assert!(message.contains("made by another recipe"), "{message}");
    assert_eq!(files_under(&dir.join("run/checkpoints/step-00000002")), before);
}

#[test]
fn wrong_recipes_are_told_in_one_line() {
    let dir = workshop();
    let dir = dir.path();
    for (set, expected) in [
        ("budget.row=3", "unknown field `row`"),
        ("nonsense=1", "unknown field `nonsense`"),
        ("method.settings.nonsense=1", "nonsense"),
        ("method.name=gam", "unknown method"),
        ("budget.batch_rows=1", "budget.batch_rows"),
        ("model=missing", "missing"),
        ("data.paths=['missing.txt']", "missing.txt"),
    ] {
        let message = error_line(&run(dir, &train("run", &["--set", set])));
        assert!(message.contains(expected), "{set}: {message}");
    }
    let message = error_line(&run(dir, &["train", "missing.toml"]));
    assert!(message.contains("missing.toml"), "{message}");
    fs::write(dir.join("broken.toml"), "model = 'base'\n[method\n").unwrap();
    let message = error_line(&run(dir, &["train", "broken.toml"]));
    assert!(message.contains("broken.toml") && message.contains("line 2"), "{message}");
}

#[cfg(unix)]
#[test]
fn a_full_disk_keeps_the_last_checkpoint() {
    let dir = workshop();
    let dir = dir.path();
    let late = ["--set", "validation.every_steps=6"];
    stdout(run(dir, &train("run", &[&late[..], &["--stop-after-steps", "2"]].concat())));
    let kept = dir.join("run/checkpoints/step-00000002");
    let before = files_under(&kept);
    let message = error_line(&run_on_a_full_disk(dir, &train("run", &late)));
    assert!(message.contains("step-00000004"), "{message}");
    assert!(message.to_lowercase().contains("too large"), "{message}");
    assert_eq!(files_under(&kept), before);
    assert_eq!(stdout(run(dir, &train("run", &late))), "run/model\n");
}

#[test]
fn a_certificate_tells_what_a_gem_has_cost() {
    let dir = workshop();
    let dir = dir.path();
    crate::eval::tasks(&dir.join("data"));
    let scope = |scope: &str| format!("method.settings.scope={scope}");
    stdout(run(dir, &train("special", &["--set", &scope("special")])));
    stdout(run(dir, &train("all", &["--set", &scope("all"), "--set", "optimizer.learning_rate=0.05"])));
    let certify = |gem: &'static str, more: &[&'static str]| {
        let args = ["certify", "base", gem, "--data", "data", "--limit", "0", "--out", "out"];
        run(dir, &[&args[..], more].concat())
    };
    let page = stdout(certify("special/model", &["--max-kl", "0"]));
    assert!(page.contains("**Within its promises.**") && page.contains("- 0 of "), "{page}");
    assert!(page.contains("4 of 4 greedy replies") && page.contains("Wiki") && page.contains("Last"), "{page}");
    assert!(page.contains("kept: the base model's logits, bit for bit") && !page.contains("broken"), "{page}");
    assert!(page.contains("Weights of both: stored") && page.contains("Not measured: MMLU ("), "{page}");
    assert_eq!(fs::read_to_string(dir.join("out/certificate.md")).unwrap(), page);
    let nothing = certify("special/model", &["--max-mmlu-drop", "0"]);
    assert_eq!(nothing.status.code(), Some(1));
    let message = String::from_utf8(nothing.stderr).unwrap();
    assert!(message.contains("refused: a limit for MMLU: found not measured"), "{message}");
    // Rounded alike on both sides.
    for weights in ["bf16", "f32"] {
        let page = stdout(certify("special/model", &["--weights", weights]));
        assert!(page.contains("**Within its promises.**") && page.contains(&format!("both: {weights}")), "{page}");
    }
    let refused = certify("all/model", &["--max-kl", "0"]);
    assert_eq!(refused.status.code(), Some(1));
    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(
        message.lines().last().unwrap().starts_with("refused: mean KL(base || GEM) at most 0 nats: found "),
        "{message}"
    );
    let json = fs::read_to_string(dir.join("out/certificate.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["passed"], false);
    assert!(json["num_differing_logits"].as_u64().unwrap() > 0 && json["mean_kl"].as_f64().unwrap() > 0.0);
    // What the special tokens keep: lengths that no text has are told and left out.
    let args = ["eval", "reconstruct", "texts.txt", "--model", "special/model", "--lengths", "8,12,900"];
    let output = run(dir, &[&args[..], &["--json", "r.json", "--report", "r.md"]].concat());
    let report = fs::read_to_string(dir.join("r.md")).unwrap();
    assert!(report.contains("| 12 |") && report.contains("](r-2.png)"), "{report}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("no text of 900 tokens"));
    let table = stdout(output);
    assert_eq!(table.lines().count(), 3, "{table}");
    let rows: serde_json::Value = serde_json::from_str(&fs::read_to_string(dir.join("r.json")).unwrap()).unwrap();
    let loss = |given: &str| rows[1]["reconstruction_loss"][given].as_f64().unwrap();
    assert!(["special_tokens", "nothing", "text"].iter().all(|given| (1.0..9.0).contains(&loss(given))), "{rows}");
    // Without a budget a scope that promises nothing is told, not refused.
    let page = stdout(certify("all/model", &[]));
    assert!(page.contains("**Nothing was promised**") && page.contains("logits differ in any bit\n"), "{page}");
    let json = fs::read_to_string(dir.join("out/certificate.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["passed"], &json["not_measured"]), (&serde_json::Value::Null, &serde_json::json!(["MMLU"])));
}

/// Methods that change the chat promise nothing of it, and are measured all the same.
#[test]
fn every_trained_method_is_certified() {
    let dir = workshop();
    let dir = dir.path();
    let few = "settings={num_special_tokens=2}";
    for (method, settings) in [
        ("simcse", ""),
        ("llm2vec", ""),
        ("gritlm", ""),
        ("gist", few),
        ("autocompressor", few),
        ("sepllm", "settings={num_initial=1,window=2,separators=['a','e']}"),
    ] {
        let set = format!("method={{name='{method}',{settings}}}").replace(",}", "}");
        stdout(run(dir, &train(method, &["--set", &set, "--set", "optimizer.learning_rate=0.05"])));
        let gem = format!("{method}/model");
        let certify =
            |more: &[&str]| run(dir, &[&["certify", "base", &gem, "--data", ".", "--out", "out"][..], more].concat());
        let page = stdout(certify(&["--max-kl", "50"]));
        assert!(page.contains("kept: mean KL(base || GEM) at most 50 nats"), "{page}");
        assert!(
            !page.contains("bit for bit") && !page.contains("KL(base || GEM) of a position: mean 0.000000"),
            "{page}"
        );
        assert_eq!(certify(&["--max-kl", "0"]).status.code(), Some(1));
    }
}

/// Methods that add tokens alone promise what GEM promises; an answer without text is passed over.
#[test]
fn methods_that_leave_chat_alone_are_trained_and_certified() {
    let dir = workshop();
    let dir = dir.path();
    let pair = |text: &str, positive: &str| format!("{{\"text\":\"{text}\",\"positive\":\"{positive}\"}}\n");
    let pairs = [pair("who runs", "the dog"), pair("no answer", ""), pair("what news", "none today")];
    fs::write(dir.join("pairs.jsonl"), pairs.concat()).unwrap();
    let data = "data={paths=['pairs.jsonl'],column='text',positive_column='positive'}";
    for method in ["icae", "llm2vec-gen"] {
        let set = format!("method={{name='{method}',settings={{num_special_tokens=2}}}}");
        let fixed = ["--set", &set, "--set", data, "--set", "optimizer.learning_rate=0.05"];
        let output = run(dir, &train(method, &fixed));
        let told = String::from_utf8(output.stderr.clone()).unwrap();
        assert_eq!(told.contains("passed over"), method == "llm2vec-gen", "{told}");
        stdout(output);
        let page = stdout(run(dir, &["certify", "base", &format!("{method}/model"), "--data", "."]));
        assert!(page.contains("bit for bit"), "{page}");
        for (wrong, expected) in [
            ("trained=full", "trained: expected \"lora\""),
            ("method={name='llm2vec-gen'}", "data.positive_column"),
            ("loss.teacher.methods=[{name='mean'}]", "loss.teacher.methods"),
        ] {
            // The second is wrong without pairs, the third where no vector is trained.
            let output = match wrong {
                "trained=full" => run(dir, &train("wrong", &[&fixed[..], &["--set", wrong]].concat())),
                "method={name='llm2vec-gen'}" => run(dir, &train("wrong", &["--set", wrong])),
                _ if method == "icae" => run(dir, &train("wrong", &[&fixed[..], &["--set", wrong]].concat())),
                _ => continue,
            };
            let message = error_line(&output);
            assert!(message.contains(expected), "{message}");
        }
    }
}

#[test]
fn what_cannot_be_certified_is_told_in_one_line() {
    let dir = workshop();
    let dir = dir.path();
    stdout(run(dir, &train("run", &["--set", "budget.rows=4"])));
    for (args, expected) in [
        (["base", "missing"], "GEM: expected a directory with a gem.json, found no such directory: missing"),
        (["base", "base"], "GEM: expected a directory with a gem.json, found none in base"),
        (["run/model", "run/model"], "BASE: expected a base model, found a GEM directory: run/model"),
        (["missing", "run/model"], "missing"),
    ] {
        let message = error_line(&run(dir, &["certify", args[0], args[1]]));
        assert!(message.contains(expected) && !message.contains("--model"), "{message}");
    }
    for limit in ["nan", "-1", "inf"] {
        let limit = format!("--max-kl={limit}");
        assert_eq!(run(dir, &["certify", "base", "run/model", &limit]).status.code(), Some(2), "{limit}");
    }
}

#[test]
fn a_run_ends_beyond_its_damage_budget() {
    let dir = workshop();
    let dir = dir.path();
    fs::write(dir.join("chats.jsonl"), "{\"text\": \"Who runs?\"}\n{\"text\": \"The news.\"}\n").unwrap();
    let limited = |out: &str, limit: f64| {
        let limit = format!("damage.max_kl={limit}");
        let sets = ["method.settings.scope=all", "optimizer.learning_rate=0.05", "damage.chats=chats.jsonl", &limit];
        run(dir, &train(out, &sets.iter().flat_map(|set| ["--set", set]).collect::<Vec<_>>()))
    };
    let rows = |out: &str| -> Vec<serde_json::Value> {
        let text = fs::read_to_string(dir.join(out).join("metrics.jsonl")).unwrap();
        let rows = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        rows.filter(|row| row.get("damage_mean_kl").is_some()).collect()
    };
    stdout(limited("free", 1e9));
    let found: Vec<f64> = rows("free").iter().map(|row| row["damage_mean_kl"].as_f64().unwrap()).collect();
    assert!(found.len() == 2 && 0.0 < found[0] && found[0] < found[1], "{found:?}");

    let output = limited("limited", f64::midpoint(found[0], found[1]));
    let told = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(stdout(output), "limited/model\n");
    assert!(told.contains("ended at step 6 of 6, beyond the damage budget: mean KL(base || model) is "), "{told}");
    assert!(told.contains("the model is that of step 3, the best within it"), "{told}");
    let verdicts: Vec<_> = rows("limited").iter().map(|row| row["within_budget"].clone()).collect();
    assert_eq!(verdicts, [true, false]);

    let message = error_line(&limited("none", found[0] / 2.0));
    assert!(
        message.contains("training stopped at step 3: mean KL") && message.contains("first measurement"),
        "{message}"
    );
    assert!(!dir.join("none/model").exists());
}

#[test]
fn a_sweep_trains_measures_and_goes_on() {
    let dir = workshop();
    let dir = dir.path();
    let sweep = "recipe = 'recipe.toml'\nset = ['budget.rows=8', 'validation.every_steps=0']\nseeds = [0, 1]\n\
                 sts = ['sts.csv']\n[[variants]]\nname = 'k = 1'\nset = ['method.settings.num_special_tokens=1']\n\
                 [[variants]]\nname = 'k = 2'\n";
    fs::write(dir.join("sweep.toml"), sweep).unwrap();
    let args = ["sweep", "sweep.toml", "--out", "out"];
    let table = stdout(run(dir, &args));
    let names: Vec<&str> = table.lines().map(|line| &line[..5]).collect();
    assert_eq!(names, ["varia", "k = 1", "k = 2"], "{table}");
    assert!(fs::read(dir.join("out/report-1.png")).unwrap().starts_with(b"\x89PNG"));
    assert!(fs::read_to_string(dir.join("out/report.md")).unwrap().contains("| k = 2 |"));
    // What is measured is not trained again; what is missing is.
    let scores = dir.join("out/k-=-1/seed-0/scores.json");
    let text = fs::read_to_string(&scores).unwrap();
    fs::remove_file(dir.join("out/k-=-2/seed-1/scores.json")).unwrap();
    assert_eq!(stdout(run(dir, &args)), table);
    assert_eq!(fs::read_to_string(&scores).unwrap(), text);
    let message = error_line(&run(dir, &[&args[..], &["--set", "seed=3"]].concat()));
    assert!(message.contains("scores.json: made with"), "{message}");
    // What the special tokens keep is measured on the models that are there, and found again.
    let lengths = format!("reconstruct = {{ lengths = [8, 12], num_texts = 2 }}\n{sweep}");
    fs::write(dir.join("sweep.toml"), &lengths).unwrap();
    let keep = [&args[..], &["--reconstruct", "texts.txt"]].concat();
    let tables = stdout(run(dir, &keep));
    let again = tables.split("\n\n").nth(1).unwrap();
    let names: Vec<&str> = again.lines().map(|line| line.split("  ").next().unwrap()).collect();
    assert_eq!(names, ["variant", "k = 1", "k = 2", "given nothing", "given the text"], "{tables}");
    let text = fs::read_to_string(&scores).unwrap();
    assert_eq!(stdout(run(dir, &keep)), tables);
    assert_eq!(fs::read_to_string(&scores).unwrap(), text);
    // Without asking for it nothing is lost, and a method without special tokens costs nobody else's figures.
    stdout(run(dir, &args));
    assert_eq!(fs::read_to_string(&scores).unwrap(), text);
    fs::write(
        dir.join("sweep.toml"),
        format!("{lengths}[[variants]]\nname = 'mean'\nmodel = 'base'\nmethod = 'mean'\n"),
    )
    .unwrap();
    let with_mean = run(dir, &keep);
    assert!(
        String::from_utf8_lossy(&with_mean.stderr).contains("mean, as-it-is: no reconstruction: "),
        "{with_mean:?}"
    );
    let found = stdout(with_mean);
    assert!(found.contains("\nmean ") && found.split("\n\n").nth(1).unwrap().lines().count() == 5, "{found}");
    let report = fs::read_to_string(dir.join("out/report.md")).unwrap();
    assert!(report.contains("## The text again") && report.contains("](report-4.png)"), "{report}");
    fs::write(dir.join("sweep.toml"), lengths.replace("[8, 12]", "[2]")).unwrap();
    let message = error_line(&run(dir, &keep));
    assert!(message.contains("reconstruct") && message.contains("at least 4 tokens"), "{message}");
    fs::write(dir.join("sweep.toml"), sweep.replace("num_special_tokens=1", "num_special_tokens=0")).unwrap();
    let message = error_line(&run(dir, &["sweep", "sweep.toml", "--out", "other"]));
    assert!(message.contains("k = 1") && message.contains("num_special_tokens"), "{message}");
}
