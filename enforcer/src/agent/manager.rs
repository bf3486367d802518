//! What the service manager is told, by `sd_notify`: ready, reloading, stopping, a line of status, and a sign of life for
//! its watchdog. Without a manager all of it does nothing.

use std::time::Duration;

use sd_notify::NotifyState;

/// What the manager knows.
#[derive(Debug, Default)]
pub(super) struct Manager {
    /// The status that it was told last.
    status: String,
    /// Within which time it wants a sign of life; nothing if it does not.
    watchdog: Option<Duration>,
    is_reloading: bool,
}

impl Manager {
    /// The one that started this process, if one did.
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

    /// The policy's files are being read because somebody asked for it.
    pub fn reloading(&mut self) {
        let Ok(now) = NotifyState::monotonic_usec_now() else {
            return;
        };
        send(&[NotifyState::Reloading, now]);
        self.is_reloading = true;
    }

    /// What was asked for is done, or was refused.
    pub fn reloaded(&mut self, status: String) {
        if self.is_reloading {
            self.ready(status);
        }
    }

    /// The agent lives, and this is its status.
    pub fn alive(&mut self, status: String) {
        if self.watchdog.is_some() {
            send(&[NotifyState::Watchdog]);
        }
        if status != self.status {
            send(&[NotifyState::Status(&status)]);
            self.status = status;
        }
    }

    /// The agent ends.
    pub fn stopping(&self, status: &str) {
        send(&[NotifyState::Stopping, NotifyState::Status(status)]);
    }
}

/// The manager may have gone, and enforcement goes on.
fn send(states: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(states);
}
