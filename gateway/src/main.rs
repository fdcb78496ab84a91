//! The `referral` command; everything is in the library's [`referral::cli`].

fn main() -> std::process::ExitCode {
    referral::cli::run()
}
