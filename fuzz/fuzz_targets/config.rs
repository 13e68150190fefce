//! config.json: whatever the text, the reader answers with a decoder configuration or an error.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    let _ = lapidary::model::hf::config_from_json(text);
});
