//! The fuzz targets' claims hold for their corpus, for every message on record, and for ten thousand
//! mutations of those per run; `SEED` replays one.

#[path = "fuzz/claims.rs"]
mod claims;

use std::fs;
use std::path::{Path, PathBuf};

fn files(directory: &Path) -> Vec<Vec<u8>> {
    let Ok(entries) = fs::read_dir(directory) else { return vec![] };
    let mut paths: Vec<PathBuf> = entries.map(|it| it.unwrap().path()).collect();
    paths.sort();
    paths.iter().filter(|it| it.is_file()).map(|it| fs::read(it).unwrap()).collect()
}

#[test]
fn every_claim_holds_for_its_corpus_and_for_what_is_near_it() {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let messages: Vec<Vec<u8>> =
        ["rfc4475", "rfc5118"].iter().flat_map(|it| files(&here.join("data").join(it))).collect();
    let seed: u64 = std::env::var("SEED").ok().and_then(|it| it.parse().ok()).unwrap_or(0x5eed);
    for (name, claim) in claims::CLAIMS {
        let mut inputs = files(&here.join("fuzz/corpus").join(name));
        assert!(!inputs.is_empty(), "no corpus for {name}");
        match name {
            "message" | "stream" => inputs.extend(messages.iter().cloned()),
            "properties" => inputs.extend(files(&here.join("data/config"))),
            _ => {}
        }
        for input in &inputs {
            claim(input);
        }
        let mut state = seed;
        let mut random = |bound: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % bound.max(1) as u64) as usize
        };
        let rounds = if matches!(name, "properties" | "xml") { 1_000 } else { 10_000 };
        for round in 0..rounds {
            let mut input = inputs[random(inputs.len())].clone();
            for _ in 0..=random(4) {
                let at = random(input.len());
                let end = (at + random(8)).min(input.len());
                match random(5) {
                    0 => drop(input.drain(at..end)),
                    1 => input.insert(at, random(256) as u8),
                    2 => input.truncate(at),
                    3 => {
                        let piece = input[at..end].repeat(random(20));
                        input.splice(at..at, piece).for_each(drop);
                    }
                    _ => {
                        if let Some(byte) = input.get_mut(at) {
                            *byte = random(256) as u8;
                        }
                    }
                }
            }
            let outcome = std::panic::catch_unwind(|| claim(&input));
            assert!(
                outcome.is_ok(),
                "{name}: SEED={seed} round {round}: {:?}",
                String::from_utf8_lossy(&input)
            );
        }
    }
}
