//! Messages between compute and page server (pagestream v2 and v3): types and codec, no sockets
