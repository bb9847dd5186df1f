//! Requests: from the caller's struct to the engine's.

use std::ffi::{c_char, c_void};

use graftwork::chat::{ChatInput, Message};
use graftwork::sample::Options;
use graftwork::{Context, Prompt, Request, RequestId};

use crate::engine::{gw_engine, on_engine};
use crate::error::{Failure, GW_ERR_ABI, GW_ERR_UNSUPPORTED, gw_error, gw_status};
use crate::event::{gw_event_fn, sink};
use crate::gw_drop_fn;
use crate::input::{self, User, array, set_optional};
use crate::sized::{self, SizedStruct};

/// A text.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(missing_docs, reason = "see the header")]
pub struct gw_text {
    pub data: *const c_char,
    pub size: usize,
}

/// One message of a conversation.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(missing_docs, reason = "see the header")]
pub struct gw_message {
    pub role: *const c_char,
    pub role_size: usize,
    pub content: *const c_char,
    pub content_size: usize,
}

/// An adapter of a request, and how much of it.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(missing_docs, reason = "see the header")]
pub struct gw_use {
    pub name: *const c_char,
    pub name_size: usize,
    pub weight: f32,
    pub reserved: u32,
}

/// A number that is added to a token's logit.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(missing_docs, reason = "see the header")]
pub struct gw_logit_bias {
    pub token: u32,
    pub bias: f32,
}

/// A token and the logarithm of its probability.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(missing_docs, reason = "see the header")]
pub struct gw_logprob {
    pub token: u32,
    pub logprob: f32,
}

/// One request.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(missing_docs, reason = "see the header")]
pub struct gw_request {
    pub struct_size: u32,
    pub flags: u32,
    pub text: *const c_char,
    pub text_size: usize,
    pub tokens: *const u32,
    pub token_count: usize,
    pub messages: *const gw_message,
    pub message_count: usize,
    pub chat_json: *const c_char,
    pub chat_json_size: usize,
    pub adapters: *const gw_use,
    pub adapter_count: usize,
    pub stops: *const gw_text,
    pub stop_count: usize,
    pub stop_tokens: *const u32,
    pub stop_token_count: usize,
    pub logit_bias: *const gw_logit_bias,
    pub logit_bias_count: usize,
    pub max_tokens: u64,
    pub seed: u64,
    pub temperature: f32,
    pub top_k: u32,
    pub top_p: f32,
    pub min_p: f32,
    pub repetition_penalty: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    pub penalty_last_n: u32,
    pub top_logprobs: u32,
    pub context: u32,
    pub grammar: *const c_char,
    pub grammar_size: usize,
    pub on_event: gw_event_fn,
    pub user: *mut c_void,
    pub drop: gw_drop_fn,
    pub keep: u64,
}

// SAFETY: `repr(C)`, the size first, and every field may be zero.
unsafe impl SizedStruct for gw_request {
    const NAME: &'static str = "request";
}

const IGNORE_EOS: u32 = 1;
const LOGPROBS: u32 = 2;
const LOGITS: u32 = 4;

/// The adapters of a request.
///
/// # Safety
/// `adapters` is NULL or points to `count` of them, as the header says.
pub(crate) unsafe fn stack(adapters: *const gw_use, count: usize) -> Result<Vec<(String, f32)>, Failure> {
    // SAFETY: the caller's promise.
    let uses = unsafe { array(adapters, count, "adapters") }?;
    let named = |used: &gw_use| {
        if used.reserved != 0 {
            let message = format!("adapters: expected reserved to be 0, found {}", used.reserved);
            return Err(Failure::new(GW_ERR_ABI, "adapters", message));
        }
        // SAFETY: the caller's promise.
        let name = unsafe { input::text(used.name, used.name_size, "adapters.name") }?;
        Ok((name.to_owned(), used.weight))
    };
    uses.iter().map(named).collect()
}

impl gw_request {
    /// What the request starts from.
    ///
    /// # Safety
    /// What the struct points to is as the header says.
    pub(crate) unsafe fn prompt(&self) -> Result<Prompt, Failure> {
        let given = [
            !self.text.is_null(),
            !self.tokens.is_null(),
            !self.messages.is_null(),
            !self.chat_json.is_null(),
        ];
        let found = given.iter().filter(|given| **given).count();
        if found != 1 {
            let expected = "exactly one of text, tokens, messages and chat_json";
            return Err(Failure::argument("prompt", expected, found));
        }
        // SAFETY: the caller's promise, here and below.
        unsafe {
            if !self.text.is_null() {
                return Ok(input::text(self.text, self.text_size, "text")?.into());
            }
            if !self.tokens.is_null() {
                let tokens = array(self.tokens, self.token_count, "tokens")?;
                return Ok(input::copy(tokens, "tokens")?.into());
            }
            if !self.chat_json.is_null() {
                let json = input::text(self.chat_json, self.chat_json_size, "chat_json")?;
                return Ok(ChatInput::from_json(json).map_err(graftwork::Error::from)?.into());
            }
            let message = |message: &gw_message| {
                let role = input::text(message.role, message.role_size, "messages.role")?;
                let content = input::text(message.content, message.content_size, "messages.content")?;
                Ok(Message::new(role, content))
            };
            let messages = array(self.messages, self.message_count, "messages")?;
            Ok(messages.iter().map(message).collect::<Result<Vec<_>, Failure>>()?.into())
        }
    }

    /// # Safety
    /// What the struct points to is as the header says.
    unsafe fn to_request(self) -> Result<Request, Failure> {
        if self.flags & !(IGNORE_EOS | LOGPROBS | LOGITS) != 0 {
            let found = format!("{:#x}", self.flags);
            return Err(Failure::argument("flags", "GW_REQUEST_... of this version", found));
        }
        let context = match self.context {
            0 => Context::Stop,
            1 => Context::Shift { keep: usize::try_from(self.keep).unwrap_or(usize::MAX) },
            found => return Err(Failure::argument("context", "one of GW_CONTEXT_...", found)),
        };
        if !self.grammar.is_null() || self.grammar_size != 0 {
            let message = "grammar: this version cannot constrain answers";
            return Err(Failure::new(GW_ERR_UNSUPPORTED, "grammar", message));
        }
        let or = |value: f32, default: f32| if value == 0.0 { default } else { value };
        let defaults = Options::default();
        // SAFETY: the caller's promise.
        unsafe {
            let stop = |stop: &gw_text| input::text(stop.data, stop.size, "stops").map(str::to_owned);
            let bias = array(self.logit_bias, self.logit_bias_count, "logit_bias")?;
            Ok(Request {
                adapters: stack(self.adapters, self.adapter_count)?,
                max_tokens: match self.max_tokens {
                    0 => None,
                    most => Some(usize::try_from(most).unwrap_or(usize::MAX)),
                },
                sampling: Options {
                    temperature: self.temperature,
                    top_k: self.top_k as usize,
                    top_p: or(self.top_p, defaults.top_p),
                    min_p: self.min_p,
                    repetition_penalty: or(self.repetition_penalty, defaults.repetition_penalty),
                    presence_penalty: self.presence_penalty,
                    frequency_penalty: self.frequency_penalty,
                    penalty_last_n: match self.penalty_last_n {
                        0 => defaults.penalty_last_n,
                        u32::MAX => usize::MAX,
                        last => last as usize,
                    },
                    seed: self.seed,
                    logit_bias: bias.iter().map(|bias| (bias.token, bias.bias)).collect(),
                },
                stop: array(self.stops, self.stop_count, "stops")?
                    .iter()
                    .map(stop)
                    .collect::<Result<_, _>>()?,
                stop_tokens: input::copy(
                    array(self.stop_tokens, self.stop_token_count, "stop_tokens")?,
                    "stop_tokens",
                )?,
                ignore_eos: self.flags & IGNORE_EOS != 0,
                logprobs: (self.flags & LOGPROBS != 0).then_some(self.top_logprobs as usize),
                logits: self.flags & LOGITS != 0,
                context,
                ..Request::new(self.prompt()?)
            })
        }
    }
}

/// See the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_request_init(request: *mut gw_request, size: usize) -> gw_status {
    // SAFETY: the caller's promise.
    unsafe { sized::init(request, size) }
}

/// See the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_submit(
    engine: *const gw_engine,
    request: *const gw_request,
    id: *mut u64,
    error: *mut *mut gw_error,
) -> gw_status {
    // SAFETY: the caller's promises.
    unsafe {
        on_engine("gw_submit", engine, error, |engine| {
            let given = sized::read(request)?;
            let request = given.to_request()?;
            let (user, claim) = User::new(given.user, given.drop).claim();
            let submitted = match given.on_event {
                None => engine.submit(request)?,
                Some(on_event) => engine.submit_to(sink(on_event, user), request)?,
            };
            claim.keep();
            set_optional(id, submitted.get());
            Ok(())
        })
    }
}

/// See the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_cancel(
    engine: *const gw_engine,
    id: u64,
    error: *mut *mut gw_error,
) -> gw_status {
    // SAFETY: the caller's promises.
    unsafe { on_engine("gw_cancel", engine, error, |engine| Ok(engine.cancel(RequestId::from(id))?)) }
}
