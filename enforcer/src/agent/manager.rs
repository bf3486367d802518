//! Reports to the service manager by `sd_notify`: ready, reloading, stopping, a status line, and
//! the watchdog's keep-alive. Without a service manager, all of it does nothing.

use std::time::Duration;

use sd_notify::NotifyState;

/// What the manager has been told.
#[derive(Debug, Default)]
pub(super) struct Manager {
    /// The last status sent.
    status: String,
    /// The watchdog interval; `None` if there is no watchdog.
    watchdog: Option<Duration>,
    is_reloading: bool,
}

impl Manager {
    /// The manager that started this process, if any.
    pub fn new() -> Self {
        Self {
            watchdog: sd_notify::watchdog_enabled(),
            ..Self::default()
        }
    }

    /// The policy is in force and programs are attached.
    pub fn ready(&mut self, status: String) {
        send(&[NotifyState::Ready, NotifyState::Status(&status)]);
        self.status = status;
        self.is_reloading = false;
    }

    /// The policy's files are being read on request.
    pub fn reloading(&mut self) {
        let Ok(now) = NotifyState::monotonic_usec_now() else {
            return;
        };
        send(&[NotifyState::Reloading, now]);
        self.is_reloading = true;
    }

    /// The reload is done, or was refused.
    pub fn reloaded(&mut self, status: String) {
        if self.is_reloading {
            self.ready(status);
        }
    }

    /// Sends the keep-alive and the status.
    pub fn alive(&mut self, status: String) {
        if self.watchdog.is_some() {
            send(&[NotifyState::Watchdog]);
        }
        if status != self.status {
            send(&[NotifyState::Status(&status)]);
            self.status = status;
        }
    }

    /// The agent is ending.
    pub fn stopping(&self, status: &str) {
        send(&[NotifyState::Stopping, NotifyState::Status(status)]);
    }
}

/// The manager may be gone; enforcement continues regardless.
fn send(states: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(states);
}
