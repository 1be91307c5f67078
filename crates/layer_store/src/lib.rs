//! Page versions by (key, LSN): memtable, checksummed layer files, versions; knows neither Postgres nor sockets
