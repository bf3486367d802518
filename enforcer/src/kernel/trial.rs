//! Runs a packet through a loaded program without sending it (`BPF_PROG_TEST_RUN`).

use std::time::Duration;

use aya::programs::{Program, TestRun as _, TestRunOptions, TestRunResult};

use super::{Kernel, KernelError};

/// Which program to try a packet on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trial {
    /// As if it arrived through an interface.
    Arrives,
    /// As if a socket of the calling process's cgroup sent it.
    Sent,
    /// As if it left through an interface, sent by a socket of that cgroup and of the calling
    /// thread's network namespace.
    Leaves,
    /// As if it had arrived through an interface for a socket of that cgroup.
    Received,
}

impl Kernel {
    /// Runs a program on an Ethernet frame as if it were on an interface, and returns whether the
    /// frame may pass. Counters and records change as they would for a real one.
    ///
    /// The kernel refuses frames with less than a whole IP header (up to 6.18 at least).
    ///
    /// # Errors
    ///
    /// The kernel does not run the program.
    pub fn try_frame(
        &mut self,
        trial: Trial,
        frame: &[u8],
        interface: u32,
    ) -> Result<bool, KernelError> {
        let returned = self.trial(trial, frame, interface, 1)?.return_value;
        Ok(match trial {
            // TC_ACT_SHOT is 2; any other value lets the next program decide.
            Trial::Arrives | Trial::Leaves => returned != 2,
            Trial::Sent | Trial::Received => returned & 1 == 1,
        })
    }

    /// How long a program takes for a frame, averaged over this many runs.
    ///
    /// # Errors
    ///
    /// As [`Kernel::try_frame`].
    pub fn time_frame(
        &mut self,
        trial: Trial,
        frame: &[u8],
        interface: u32,
        times: u32,
    ) -> Result<Duration, KernelError> {
        Ok(self.trial(trial, frame, interface, times)?.duration)
    }

    fn trial(
        &mut self,
        trial: Trial,
        frame: &[u8],
        interface: u32,
        times: u32,
    ) -> Result<TestRunResult, KernelError> {
        // `ifindex` in `struct __sk_buff` (include/uapi/linux/bpf.h); the rest must be zero.
        const IFINDEX: usize = 40;
        const LENGTH: usize = 192;
        let mut context = [0; LENGTH];
        context[IFINDEX..IFINDEX + 4].copy_from_slice(&interface.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context),
            repeat: times,
            ..TestRunOptions::new()
        };
        let name = match trial {
            Trial::Arrives => "enforcer_tc_in",
            Trial::Sent => "enforcer_skb_out",
            Trial::Leaves => "enforcer_tc_out",
            Trial::Received => "enforcer_skb_in",
        };
        let program = self
            .bpf
            .program_mut(name)
            .ok_or(KernelError::Missing(name))?;
        let result = match program {
            Program::SchedClassifier(program) => program.test_run(options),
            Program::CgroupSkb(program) => program.test_run(options),
            _ => return Err(KernelError::Missing(name)),
        };
        result.map_err(|error| KernelError::program(name, error))
    }
}
