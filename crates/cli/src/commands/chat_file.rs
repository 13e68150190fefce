//! `lapidary chat --input`: a reply to each text of a file, as pairs to train on; goes on where it was ended.

use super::chat::{ChatArgs, said};
use crate::context::Context;
use crate::failure::Interrupted;
use crate::{interrupt, progress};
use anyhow::{Context as _, Result, bail};
use lapidary::data::{self, DataSpec};
use lapidary::generate::GenerateOptions;
use lapidary::{Error, Lapidary};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom, Write as _};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::Ordering;

/// A line of the output: the columns that a recipe's `data` reads, and what made it.
#[derive(Debug, Serialize, Deserialize)]
struct Pair {
    text: String,
    positive: String,
    /// Hash of the model, of the system message and of the options: replies of two do not mix.
    generator: String,
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
    let described = format!("{:?} {options:?}", args.system);
    let mut generated_by = lapidary::fingerprint_of(&[gem.fingerprint().as_bytes(), described.as_bytes()]);
    generated_by.truncate(16);
    let (mut file, num_done, mut num_empty) = resume(output, &texts, &generated_by)?;
    let stop = interrupt::stop_flag("stopping after this reply")?;
    let bar = progress::bar(context, texts.len() as u64, "replies")?;
    bar.set_position(num_done as u64);
    bar.reset_eta();
    let generator = gem.generator();
    let mut sequence = generator.sequence();
    for text in &texts[num_done..] {
        let messages: Vec<_> = args.system.iter().map(|system| said("system", system)).collect();
        let ids = gem.chat_ids(&[messages, vec![said("user", text)]].concat())?;
        let positive = match generator.generate(&mut sequence, &ids, options, &mut |_| ControlFlow::Continue(())) {
            Ok(reply) => reply.text,
            // One text that the model has no room for does not keep the others from their replies.
            Err(Error::TooLong { .. }) => String::new(),
            Err(error) => return Err(error.into()),
        };
        num_empty += usize::from(positive.trim().is_empty());
        let pair = Pair { text: text.clone(), positive, generator: generated_by.clone() };
        let line = serde_json::to_string(&pair)? + "\n";
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

/// The output behind its last whole line, the number of its lines, which must be those of the first texts by the same
/// generator, and how many of them are empty replies.
fn resume(output: &Path, texts: &[String], generated_by: &str) -> Result<(File, usize, usize)> {
    let path = || output.display().to_string();
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(output);
    let mut file = open.with_context(path)?;
    let (mut num_lines, mut num_bytes, mut num_empty) = (0, 0, 0);
    let mut reader = BufReader::new(&file);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).with_context(path)? > 0 {
        let text = texts.get(num_lines);
        let pair: Option<Pair> = serde_json::from_slice(&line).ok().filter(|_| line.ends_with(b"\n"));
        let is_next = match &pair {
            Some(pair) => text == Some(&pair.text) && pair.generator == generated_by,
            // The beginning of a line that a kill has cut short; nothing else may be removed.
            None => text.is_some_and(|text| begins_as_pair_of(&line, text)),
        };
        if !is_next {
            bail!(
                "{}:{}: expected a reply to text {} of the input by this model and these options, found another line \
                 (another --output keeps both)",
                path(),
                num_lines + 1,
                num_lines + 1
            );
        }
        let Some(pair) = pair else { break };
        num_empty += usize::from(pair.positive.trim().is_empty());
        num_lines += 1;
        num_bytes += line.len() as u64;
        line.clear();
    }
    file.set_len(num_bytes).with_context(path)?;
    file.seek(SeekFrom::End(0)).with_context(path)?;
    Ok((file, num_lines, num_empty))
}

/// Whether a line without an end begins as that of a reply to `text`.
fn begins_as_pair_of(line: &[u8], text: &str) -> bool {
    let head = serde_json::to_string(text).map(|text| format!("{{\"text\":{text},\"positive\":\""));
    let head = head.unwrap_or_default();
    let common = line.len().min(head.len());
    !line.ends_with(b"\n") && line[..common] == head.as_bytes()[..common]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_is_continued_behind_its_last_whole_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pairs.jsonl");
        let texts = ["a", "b", "c"].map(str::to_owned);
        assert_eq!(resume(&path, &texts, "g").unwrap().1, 0);
        let whole = "{\"text\":\"a\",\"positive\":\" \",\"generator\":\"g\"}\n";
        std::fs::write(&path, format!("{whole}{{\"text\":\"b\",\"posi")).unwrap();
        let (mut file, done, empty) = resume(&path, &texts, "g").unwrap();
        assert_eq!((done, empty), (1, 1));
        file.write_all(b"next").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{whole}next"));
        // Other texts, another generator, and files that are none of ours stay as they are.
        for (content, texts, generator) in
            [(whole, &texts[1..], "g"), (whole, &texts[..], "h"), ("notes", &texts[..], "g"), ("a\n", &texts[..], "g")]
        {
            std::fs::write(&path, content).unwrap();
            let error = resume(&path, texts, generator).unwrap_err().to_string();
            assert!(error.contains("pairs.jsonl:1: expected a reply to text 1"), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        }
    }
}
