//! With the feature `cuda`, compiles `cuda/all.cu` into one module for every card from sm_80 on.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=cuda");
    println!("cargo:rerun-if-env-changed=NVCC");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let nvcc = std::env::var("NVCC").unwrap_or_else(|_| "nvcc".into());
    let output = PathBuf::from(std::env::var("OUT_DIR").expect("cargo sets OUT_DIR")).join("kernels.fatbin");
    let mut command = Command::new(&nvcc);
    command.args(["-fatbin", "-O3", "-std=c++17", "-o"]).arg(&output).arg("cuda/all.cu");
    // Machine code for cards that are here, and for later ones text that the driver compiles.
    for target in
        ["arch=compute_80,code=sm_80", "arch=compute_89,code=sm_89", "arch=compute_90,code=[sm_90,compute_90]"]
    {
        command.args(["-gencode", target]);
    }
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{command:?}: {status}"),
        Err(error) => panic!("{nvcc}: {error}; the feature `cuda` needs CUDA's compiler, see scripts/cuda_toolkit.py"),
    }
}
