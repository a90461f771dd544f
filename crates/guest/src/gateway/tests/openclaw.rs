//! The gateway of a tenant of OpenClaw, with the services outside faked, and with workers that write down what they get.

mod bot_api;
mod delivery;
mod model;
mod people;
mod tls;
mod worker;
mod world;
