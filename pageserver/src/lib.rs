//! Page server: ingests WAL, stores page versions, answers GetPage@LSN
