//! Events, and the functions that make them happen.

use std::ffi::{c_char, c_void};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use graftwork::{Event, FinishReason, RequestId};

use crate::engine::{gw_engine, on_engine};
use crate::error::{Failure, GW_OK, Text, gw_error, gw_status};
use crate::guard::{free, quietly};
use crate::input::{Out, User, set_optional};
use crate::request::gw_logprob;

/// What happened to a request.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(missing_docs, reason = "see the header")]
pub struct gw_event {
    pub struct_size: u32,
    pub kind: i32,
    pub request: u64,
    pub text: *const c_char,
    pub text_size: usize,
    pub token: u32,
    pub finish: i32,
    pub logprob: f32,
    pub status: gw_status,
    pub top: *const gw_logprob,
    pub top_count: usize,
    pub logits: *const f32,
    pub logits_count: usize,
    pub message: *const c_char,
    pub message_size: usize,
}

/// Hears the events of a request.
pub type gw_event_fn = Option<OnEvent>;

type OnEvent = unsafe extern "C" fn(user: *mut c_void, event: *const gw_event) -> i32;

/// An event as the caller sees it, first, and what that points to.
#[repr(C)]
pub(crate) struct OwnedEvent {
    seen: gw_event,
    text: Text,
    message: Text,
    top: Vec<gw_logprob>,
    logits: Vec<f32>,
}

impl OwnedEvent {
    pub fn new(event: Event) -> Box<Self> {
        let mut seen = gw_event {
            struct_size: size_of::<gw_event>() as u32,
            kind: 0,
            request: event.id().get(),
            text: std::ptr::null(),
            text_size: 0,
            token: 0,
            finish: 0,
            logprob: 0.0,
            status: GW_OK,
            top: std::ptr::null(),
            top_count: 0,
            logits: std::ptr::null(),
            logits_count: 0,
            message: std::ptr::null(),
            message_size: 0,
        };
        let (mut text, mut message, mut top, mut logits) =
            (String::new(), String::new(), Vec::new(), Vec::new());
        match event {
            Event::Token { token, text: piece, logprob, logits: values, .. } => {
                seen.kind = 1;
                seen.token = token;
                text = piece;
                logits = values.unwrap_or_default();
                if let Some(logprob) = logprob {
                    seen.logprob = logprob.chosen;
                    top = logprob
                        .top
                        .into_iter()
                        .map(|(token, logprob)| gw_logprob { token, logprob })
                        .collect();
                }
            }
            Event::Finished { reason, text: rest, .. } => {
                seen.kind = 2;
                seen.finish = match reason {
                    FinishReason::Stop => 1,
                    FinishReason::StopText => 2,
                    FinishReason::Length => 3,
                    FinishReason::Cancelled => 4,
                };
                text = rest;
            }
            Event::Failed { error, .. } => {
                let failure = Failure::from(graftwork::Error::from(error));
                seen.kind = 3;
                seen.status = failure.status;
                message = failure.message;
            }
        }
        let (text, message) = (Text::new(text), Text::new(message));
        (seen.text, seen.text_size) = (text.as_ptr(), text.size());
        (seen.message, seen.message_size) = (message.as_ptr(), message.size());
        if !top.is_empty() {
            (seen.top, seen.top_count) = (top.as_ptr(), top.len());
        }
        if !logits.is_empty() {
            (seen.logits, seen.logits_count) = (logits.as_ptr(), logits.len());
        }
        Box::new(Self { seen, text, message, top, logits })
    }

    pub fn seen(&self) -> &gw_event {
        &self.seen
    }
}

/// Tells a caller's function of each event.
///
/// # Safety
/// `on_event` may be called with the data of `user` from any thread, one call at a time, until this goes.
pub(crate) unsafe fn sink(
    on_event: OnEvent,
    user: Arc<User>,
) -> impl FnMut(Event) -> ControlFlow<()> + Send + 'static {
    move |event| {
        let event = OwnedEvent::new(event);
        // SAFETY: the caller's promise; the event lives until it returns.
        match unsafe { on_event(user.data(), event.seen()) } {
            0 => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        }
    }
}

/// See the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_step(
    engine: *const gw_engine,
    live: *mut i32,
    error: *mut *mut gw_error,
) -> gw_status {
    // SAFETY: the caller's promises.
    unsafe {
        on_engine("gw_step", engine, error, |engine| {
            engine.step_only()?;
            set_optional(live, engine.is_live().into());
            Ok(())
        })
    }
}

/// See the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_poll(
    engine: *const gw_engine,
    id: u64,
    timeout_ms: u32,
    event: *mut *mut gw_event,
    error: *mut *mut gw_error,
) -> gw_status {
    // SAFETY: the caller's promises.
    unsafe {
        on_engine("gw_poll", engine, error, |engine| {
            let out = Out::new(event, "event")?;
            let timeout = match timeout_ms {
                u32::MAX => Duration::MAX,
                milliseconds => Duration::from_millis(milliseconds.into()),
            };
            let event = engine.poll((id != 0).then(|| RequestId::from(id)), timeout)?;
            out.set(event.map_or(std::ptr::null_mut(), |event| Box::into_raw(OwnedEvent::new(event)).cast()));
            Ok(())
        })
    }
}

/// See the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_event_free(event: *mut *mut gw_event) {
    // SAFETY: the caller's promises; events are made by `Box::into_raw` of an `OwnedEvent`, whose first field they are.
    quietly(|| unsafe { free(event, |event| drop(Box::from_raw(event.cast::<OwnedEvent>()))) });
}
