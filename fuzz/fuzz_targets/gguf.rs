//! GGUF files: whatever the bytes, the reader answers with a file or an error.
#![no_main]

use lapidary::model::gguf::GgufFile;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = GgufFile::parse(bytes) else { return };
    for info in file.tensors() {
        let _ = file.tensor(info.name());
    }
    for key in file.keys() {
        let _ = (file.get_str(key), file.get_strings(key), file.get_u32(key), file.get_f32s(key), file.get_i32s(key));
    }
});
