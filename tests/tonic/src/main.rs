//! The stock tonic client, without anything of ours: `tonic ADDRESS KEY ASIDE SHARD ...`, where `SHARD` owns `KEY` and
//! `ASIDE`. Runs every case with all keys at once over one connection, and prints a line of JSON for each: its error or
//! null. Then a line "hold" on stdin makes it begin streams that do not end.

mod cases;
mod echo;

use std::any::Any;
use std::io::Write;
use std::time::Duration;

use cases::Place;
use echo::Echo;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

const BOUND: Duration = Duration::from_secs(100);

#[tokio::main(worker_threads = 2)]
async fn main() {
    // A failed assertion is the error in its case's line.
    std::panic::set_hook(Box::new(|_| {}));
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let address = &arguments[0];
    let places: Vec<Place> = arguments[1..].chunks_exact(3).map(|place| Place::new(address, place)).collect();
    let echo = Echo::connect(address).await;
    for (name, case) in cases::all() {
        let run = |place: &Place| tokio::spawn(tokio::time::timeout(BOUND, case(echo.clone(), place.clone())));
        let runs: Vec<_> = places.iter().map(run).collect();
        for (place, run) in places.iter().zip(runs) {
            let error = match run.await {
                Ok(Ok(())) => Value::Null,
                Ok(Err(_)) => json!(format!("no end in {BOUND:?}")),
                Err(panicked) => json!(message_of(&*panicked.into_panic())),
            };
            print(json!({"case": name, "key": place.key, "error": error}));
        }
    }
    print(json!({"case": "done"}));
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    let mut held = Vec::new();
    while let Some(order) = orders.next_line().await.unwrap() {
        for place in &places {
            held.push(cases::hold(echo.clone(), place).await);
        }
        print(json!({"case": order}));
    }
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panicked".to_string())
}

fn print(line: Value) {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}").unwrap();
    stdout.flush().unwrap();
}
