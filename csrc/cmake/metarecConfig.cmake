# Adds the library to the project that asks for it, which compiles it: it fits any compiler and any flags that way.
if(NOT TARGET metarec::metarec)
  add_subdirectory(${CMAKE_CURRENT_LIST_DIR}/.. ${CMAKE_BINARY_DIR}/metarec EXCLUDE_FROM_ALL)
endif()
