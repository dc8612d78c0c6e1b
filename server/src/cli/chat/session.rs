//! A conversation: what was said, how answers are made, and making one.

use dfastllm_models::ChatTemplate;
use serde_json::{Value, json};

use super::commands::{Command, HELP, set};
use crate::ServedModel;
use crate::cli::answer::{Answer, Settings};
use crate::cli::{Failure, print};
use crate::openai::conversation::Conversation;

/// A conversation with a model.
pub(super) struct Session {
    served: ServedModel,
    template: ChatTemplate,
    settings: Settings,
    system: String,
    /// Messages so far, without the system's.
    messages: Vec<Value>,
}

impl Session {
    /// A new conversation.
    ///
    /// # Errors
    /// When the model has no chat template, or the settings do not fit it.
    pub(super) fn new(
        served: ServedModel,
        settings: Settings,
        system: String,
    ) -> Result<Self, Failure> {
        let template = served.chat.clone().ok_or_else(|| {
            Failure::failed("the model has no chat template; give --chat-template FILE")
        })?;
        check(&settings, &served).map_err(Failure::usage)?;
        Ok(Self { served, template, settings, system, messages: Vec::new() })
    }

    /// Carries out a command, and returns what to print.
    ///
    /// # Errors
    /// What is wrong with it; nothing has changed then.
    pub(super) fn carry_out(&mut self, command: &Command) -> Result<String, String> {
        match command {
            Command::Help => return Ok(HELP.to_owned()),
            Command::Show => return Ok(self.description()),
            Command::Clear => self.messages.clear(),
            Command::System(text) => self.system.clone_from(text),
            Command::Set(name, value) => {
                let mut settings = self.settings.clone();
                set(&mut settings, name, value)?;
                check(&settings, &self.served)?;
                self.settings = settings;
            }
            Command::Bye => {}
        }
        Ok(String::new())
    }

    /// Says something and prints the answer as it comes. Ctrl-C ends the answer; what there is of it
    /// stays part of the conversation.
    ///
    /// # Errors
    /// `Ok(Err)` is for the user, and the conversation is as it was before; `Err` ends it.
    pub(super) async fn say(&mut self, text: String) -> Result<Result<(), String>, Failure> {
        self.messages.push(json!({"role": "user", "content": text}));
        let request = Conversation::of(self.conversation())
            .encode(&self.template, &self.served.tokenizer)
            .and_then(|ids| self.settings.request(ids, &self.served));
        let running = match request {
            Ok(request) => self.served.engine.submit(request).map_err(|e| e.to_string()),
            Err(message) => Err(format!("{message}; /clear starts over")),
        };
        let running = match running {
            Ok(running) => running,
            Err(message) => {
                self.messages.pop();
                return Ok(Err(message));
            }
        };
        let mut answer = Answer::new(&self.served);
        let interrupt = tokio::signal::ctrl_c();
        tokio::pin!(interrupt);
        let mut stopped = false;
        while !answer.is_over() && !stopped {
            tokio::select! {
                // From the first look on a signal is ours, whatever else there is to do.
                biased;
                _ = &mut interrupt => stopped = true,
                event = running.events.recv_async() => {
                    let event = event.map_err(|_| Failure::failed("the engine stopped"))?;
                    match answer.take(event) {
                        Ok(text) => print(&text)?,
                        Err(failure) => {
                            self.messages.pop();
                            return Ok(Err(failure.message));
                        }
                    }
                }
            }
        }
        // Nobody listens any more, which ends the request at the engine's next step.
        drop(running);
        print("\n")?;
        self.messages.push(json!({"role": "assistant", "content": answer.text}));
        Ok(if stopped { Err("stopped".to_owned()) } else { Ok(()) })
    }

    /// All messages, the system's first.
    fn conversation(&self) -> Value {
        let system = json!({"role": "system", "content": self.system});
        let system = Some(system).filter(|_| !self.system.is_empty());
        system.into_iter().chain(self.messages.iter().cloned()).collect()
    }

    fn description(&self) -> String {
        let (served, settings) = (&self.served, &self.settings);
        let given = |value: Option<String>| value.unwrap_or_else(|| "default".to_owned());
        let float = |value: Option<f64>| given(value.map(|v| v.to_string()));
        let size = |value: Option<usize>| given(value.map(|v| v.to_string()));
        let mut lines = vec![
            ("model", served.name().to_owned()),
            ("family", served.family.to_owned()),
            ("device", format!("{}, {}", served.device.spec, served.dtype)),
            ("context", format!("{} tokens", served.limits.max_model_len)),
            ("messages", self.messages.len().to_string()),
            ("system", self.system.clone()),
            ("temperature", float(settings.temperature)),
            ("top_p", float(settings.top_p)),
            ("top_k", size(settings.top_k)),
            ("max_tokens", size(settings.max_tokens)),
            ("seed", given(settings.seed.map(|seed| seed.to_string()))),
        ];
        if served.limits.reference.is_some() {
            lines.push(("preset", served.preset.to_string()));
            lines.push(("diffusion", Value::from(settings.diffusion.clone()).to_string()));
        }
        lines.iter().map(|(name, value)| format!("{name:<12}{value}\n")).collect()
    }
}

/// Whether a request could be made with these settings.
fn check(settings: &Settings, served: &ServedModel) -> Result<(), String> {
    settings.request(vec![0], served).map(drop)
}
