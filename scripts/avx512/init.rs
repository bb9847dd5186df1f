//! The first process of the emulated machine: runs every test program and says on the serial line how it went.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

fn main() {
    let entries = std::fs::read_dir("/tests").expect("the folder of test programs");
    let mut tests: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    tests.sort();
    let mut passed = !tests.is_empty();
    for test in &tests {
        println!("avx512: {}", test.display());
        // One thread: the machine has one processor, and output stays in order.
        let status = Command::new(test)
            .args(["--test-threads=1", "--nocapture"])
            .env("GRAFTWORK_TEST_ISA", "avx512vnni")
            .status();
        println!("avx512: {} {status:?}", test.display());
        passed &= status.is_ok_and(|s| s.success());
    }
    println!("\navx512: {}", if passed { "all passed" } else { "failed" });
    // Whoever watches the serial line ends the machine; a first process that returns would be a panic of the system.
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}
