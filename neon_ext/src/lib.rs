//! The extension `neon`: pages of permanent relations come from a page server.

mod ffi;

pgrx::pg_module_magic!();
