//! What a token costs more through the C interface than from Rust: the same request on a tiny model, in turn.

use std::ptr::null_mut;
use std::time::{Duration, Instant};

use graftwork::{Engine, EngineOptions, Event, Request};
use graftwork_benches::median;
use graftwork_ffi::{
    GW_OK, gw_engine, gw_engine_close, gw_engine_open, gw_engine_options, gw_engine_options_init, gw_event,
    gw_event_free, gw_poll, gw_request, gw_request_init, gw_source, gw_source_free, gw_source_path,
    gw_submit,
};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/adapters/base");
const PROMPT: [u32; 3] = [1, 17, 42];
const TOKENS: usize = 400;
const ROUNDS: usize = 31;

/// The answer, from Rust.
fn from_rust(engine: &Engine) -> Vec<u32> {
    let request = Request { ignore_eos: true, ..Request::new(PROMPT.to_vec()).max_tokens(TOKENS) };
    let id = engine.submit(request).expect("a request");
    let mut tokens = Vec::with_capacity(TOKENS);
    while let Ok(Some(Event::Token { token, .. })) = engine.poll(Some(id), Duration::MAX) {
        tokens.push(token);
    }
    tokens
}

/// The answer, as a C program gets it.
fn from_c(engine: *const gw_engine) -> Vec<u32> {
    let mut tokens = Vec::with_capacity(TOKENS);
    let (mut id, mut event) = (0, null_mut::<gw_event>());
    // SAFETY: the pointers are to locals, to statics and to an open engine; zeros are a value of every field.
    unsafe {
        let mut request: gw_request = std::mem::zeroed();
        assert_eq!(gw_request_init(&mut request, size_of::<gw_request>()), GW_OK);
        (request.tokens, request.token_count) = (PROMPT.as_ptr(), PROMPT.len());
        (request.max_tokens, request.flags) = (TOKENS as u64, 1);
        assert_eq!(gw_submit(engine, &request, &mut id, null_mut()), GW_OK);
        loop {
            assert_eq!(gw_poll(engine, id, u32::MAX, &mut event, null_mut()), GW_OK);
            let (kind, token) = ((*event).kind, (*event).token);
            gw_event_free(&mut event);
            if kind != 1 {
                return tokens;
            }
            tokens.push(token);
        }
    }
}

fn open_c() -> *mut gw_engine {
    let (mut source, mut engine) = (null_mut::<gw_source>(), null_mut::<gw_engine>());
    // SAFETY: as above.
    unsafe {
        let mut options: gw_engine_options = std::mem::zeroed();
        assert_eq!(gw_engine_options_init(&mut options, size_of::<gw_engine_options>()), GW_OK);
        options.threads = 1;
        assert_eq!(gw_source_path(MODEL.as_ptr().cast(), MODEL.len(), 0, &mut source, null_mut()), GW_OK);
        assert_eq!(gw_engine_open(source, &options, &mut engine, null_mut()), GW_OK);
        gw_source_free(&mut source);
    }
    engine
}

fn main() {
    let options = EngineOptions { threads: 1, ..EngineOptions::default() };
    let rust = Engine::open(MODEL, options).expect("the model");
    let mut c = open_c();
    let expected = from_rust(&rust);
    assert_eq!(expected.len(), TOKENS);
    assert_eq!(from_c(c), expected, "another answer through C");
    let time = |run: &dyn Fn() -> Vec<u32>| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64() * 1e6 / TOKENS as f64
    };
    let (mut of_rust, mut of_c) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        of_rust.push(time(&|| from_rust(&rust)));
        of_c.push(time(&|| from_c(c)));
    }
    let mut more: Vec<f64> = of_c.iter().zip(&of_rust).map(|(c, rust)| c - rust).collect();
    println!(
        "from Rust {:.2} us a token, through C {:.2} us: {:.2} us more (median of {ROUNDS} pairs)",
        median(&mut of_rust),
        median(&mut of_c),
        median(&mut more),
    );
    // SAFETY: opened above, closed once.
    unsafe { gw_engine_close(&mut c) };
}
