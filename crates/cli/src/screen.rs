//! A page that stays on the screen and is drawn anew.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use crossterm::cursor::{Hide, MoveTo, Show};
use crossterm::queue;
use crossterm::style::Print;
use crossterm::terminal::{
    BeginSynchronizedUpdate, Clear, ClearType, DisableLineWrap, EnableLineWrap, EndSynchronizedUpdate,
    EnterAlternateScreen, LeaveAlternateScreen,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Output, nobody_reads};
use crate::terminal;

/// How often the page is asked for.
const EVERY: Duration = Duration::from_secs(1);
const CTRL_C: u8 = 3;

/// Shows what is at `path` every second until Ctrl-C, or `q` on a terminal. Programs get it line by line.
///
/// # Errors
/// Where there is no terminal for people's page, or for programs the agent's own.
pub async fn watch<T: Serialize + DeserializeOwned>(
    client: &Client,
    path: &str,
    first: T,
    output: Output,
    people: fn(&T) -> String,
) -> Result<(), Failure> {
    let unwatched = |error| Failure::io("cannot watch for signals", error);
    let mut interrupt = signal(SignalKind::interrupt()).map_err(unwatched)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(unwatched)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(unwatched)?;
    let shown = async {
        if output.is_for_people() {
            draw_on(&mut Screen::open()?, client, path, first, people).await
        } else {
            print(client, path, first, output).await
        }
    };
    // Dropping what is shown gives the terminal back as it was.
    tokio::select! {
        shown = shown => shown,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
        _ = hangup.recv() => Ok(()),
    }
}

async fn print<T: Serialize + DeserializeOwned>(
    client: &Client,
    path: &str,
    first: T,
    output: Output,
) -> Result<(), Failure> {
    let mut next = first;
    loop {
        output.show_next(&next, |_| String::new())?;
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = nobody_reads() => return Ok(()),
        }
        next = client.get(path).await?;
    }
}

async fn draw_on<T: DeserializeOwned>(
    screen: &mut Screen,
    client: &Client,
    path: &str,
    first: T,
    people: fn(&T) -> String,
) -> Result<(), Failure> {
    let resizing = signal(SignalKind::window_change());
    let mut resized = resizing.map_err(|error| Failure::io("cannot watch for signals", error))?;
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.reset();
    let mut keys = tokio::io::stdin();
    let mut page = Ok(first);
    loop {
        // An agent that went may come back: why there is no page is one, too.
        let text = page.as_ref().map_or_else(ToString::to_string, people);
        screen.draw(&text)?;
        let mut key = [0];
        tokio::select! {
            _ = ticks.tick() => page = client.get(path).await,
            _ = resized.recv() => {}
            read = keys.read(&mut key) => match (read, key[0]) {
                (Ok(1), b'q' | b'Q' | CTRL_C) | (Ok(0) | Err(_), _) => return Ok(()),
                _ => {}
            },
        }
    }
}

/// The terminal's other screen, without echo of what is typed; the usual one comes back when this is dropped.
struct Screen {
    _raw: terminal::Raw,
}

impl Screen {
    fn open() -> Result<Self, Failure> {
        let raw = if io::stdout().is_terminal() { terminal::raw()? } else { None };
        let Some(raw) = raw else {
            let why = "--watch draws on a terminal, and there is none: add -o json to have it line by line";
            return Err(Failure::Usage(why.to_owned()));
        };
        let screen = Self { _raw: raw };
        queue!(io::stdout(), EnterAlternateScreen, Hide, DisableLineWrap)
            .and_then(|()| io::stdout().flush())
            .map_err(unwritable)?;
        Ok(screen)
    }

    /// Draws as much of the page as there is room for.
    fn draw(&mut self, page: &str) -> Result<(), Failure> {
        let rows = usize::from(terminal::size().rows);
        let mut out = io::stdout().lock();
        let drawn = (|| {
            queue!(out, BeginSynchronizedUpdate, MoveTo(0, 0))?;
            for line in fitting(page, rows) {
                queue!(out, Print(line), Clear(ClearType::UntilNewLine), Print("\r\n"))?;
            }
            queue!(
                out,
                Clear(ClearType::FromCursorDown),
                Print("every second; q or Ctrl-C ends"),
                EndSynchronizedUpdate
            )?;
            out.flush()
        })();
        drawn.map_err(unwritable)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Fails only where the terminal is gone.
        let _ = queue!(io::stdout(), EnableLineWrap, Show, LeaveAlternateScreen);
        let _ = io::stdout().flush();
    }
}

fn unwritable(error: io::Error) -> Failure {
    Failure::io("cannot draw on the terminal", error)
}

/// The lines of a page for so many rows, of which one is the footer's; the last says how many are left out.
fn fitting(page: &str, rows: usize) -> Vec<String> {
    let lines: Vec<&str> = page.lines().collect();
    let room = rows.saturating_sub(1).max(1);
    if lines.len() <= room {
        return lines.into_iter().map(str::to_owned).collect();
    }
    let shown = room - 1;
    let left = format!("… {} more lines: make the terminal larger", lines.len() - shown);
    lines.into_iter().take(shown).map(str::to_owned).chain([left]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_is_too_long_says_how_much_is_left_out() {
        assert_eq!(fitting("a\nb", 3), ["a", "b"]);
        assert_eq!(fitting("a\nb\nc", 3), ["a", "… 2 more lines: make the terminal larger"]);
        assert_eq!(fitting("a\nb", 1), ["… 2 more lines: make the terminal larger"]);
    }
}
