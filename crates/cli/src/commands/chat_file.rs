//! `lapidary chat --input`: a reply to each text of a file, as pairs to train on; goes on where it was ended.

use super::chat::{ChatArgs, said};
use crate::context::Context;
use crate::failure::Interrupted;
use crate::{interrupt, progress};
use anyhow::{Context as _, Result, bail};
use lapidary::Lapidary;
use lapidary::data::{self, DataSpec};
use lapidary::generate::GenerateOptions;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom, Write as _};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::Ordering;

/// A line of the output: the columns that a recipe's `data` reads.
#[derive(Debug, Serialize, Deserialize)]
struct Pair {
    text: String,
    positive: String,
}

/// Replies to every text and writes `{"text": …, "positive": …}` lines.
///
/// # Errors
/// When a file is at fault, the output was made from other texts, a text does not fit, or the user stops it.
pub(super) fn run(
    args: &ChatArgs,
    output: &Path,
    gem: &Lapidary,
    options: &GenerateOptions,
    context: &Context,
) -> Result<()> {
    let spec = DataSpec { paths: args.input.clone(), column: args.column.clone(), ..DataSpec::default() };
    let limit = if args.limit == 0 { usize::MAX } else { args.limit };
    let texts = data::open(&spec)?.take(limit).map(|record| Ok(record?.text)).collect::<Result<Vec<String>>>()?;
    let (mut file, num_done) = resume(output, &texts)?;
    let stop = interrupt::stop_flag("stopping after this reply")?;
    let bar = progress::bar(context, texts.len() as u64, "replies")?;
    bar.set_position(num_done as u64);
    bar.reset_eta();
    let (generator, mut num_empty) = (gem.generator(), 0);
    let mut sequence = generator.sequence();
    for text in &texts[num_done..] {
        let messages: Vec<_> = args.system.iter().map(|system| said("system", system)).collect();
        let ids = gem.chat_ids(&[messages, vec![said("user", text)]].concat())?;
        let reply = generator.generate(&mut sequence, &ids, options, &mut |_| ControlFlow::Continue(()))?;
        num_empty += usize::from(reply.text.trim().is_empty());
        let line = serde_json::to_string(&Pair { text: text.clone(), positive: reply.text })? + "\n";
        file.write_all(line.as_bytes()).with_context(|| output.display().to_string())?;
        bar.inc(1);
        if stop.load(Ordering::Relaxed) {
            let told = format!("{} of {} replies; the same command goes on from there", bar.position(), texts.len());
            bail!(Interrupted(told));
        }
    }
    bar.finish_and_clear();
    if num_empty > 0 {
        context.note(&format!("{num_empty} of {} replies are empty", texts.len()));
    }
    Ok(())
}

/// The output behind its last whole line, and the number of its lines, which must be those of the first texts.
fn resume(output: &Path, texts: &[String]) -> Result<(File, usize)> {
    let path = || output.display().to_string();
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(output);
    let mut file = open.with_context(path)?;
    let (mut num_lines, mut num_bytes) = (0, 0);
    let mut reader = BufReader::new(&file);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).with_context(path)? > 0 && line.ends_with(b"\n") {
        let found: Option<Pair> = serde_json::from_slice(&line).ok();
        if found.as_ref().is_none_or(|pair| texts.get(num_lines) != Some(&pair.text)) {
            bail!(
                "{}:{}: expected a reply to text {} of the input, found another line (another --output keeps both)",
                path(),
                num_lines + 1,
                num_lines + 1
            );
        }
        num_lines += 1;
        num_bytes += line.len() as u64;
        line.clear();
    }
    file.set_len(num_bytes).with_context(path)?;
    file.seek(SeekFrom::End(0)).with_context(path)?;
    Ok((file, num_lines))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_is_continued_behind_its_last_whole_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pairs.jsonl");
        let texts = ["a", "b", "c"].map(str::to_owned);
        assert_eq!(resume(&path, &texts).unwrap().1, 0);
        let whole = "{\"text\":\"a\",\"positive\":\"x\"}\n";
        std::fs::write(&path, format!("{whole}{{\"text\":\"b\",\"posi")).unwrap();
        let (mut file, done) = resume(&path, &texts).unwrap();
        assert_eq!(done, 1);
        file.write_all(b"next").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{whole}next"));
        std::fs::write(&path, whole).unwrap();
        let error = resume(&path, &texts[1..]).unwrap_err().to_string();
        assert!(error.contains("pairs.jsonl:1: expected a reply to text 1"), "{error}");
    }
}
