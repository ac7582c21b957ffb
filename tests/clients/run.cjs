// `node run.cjs SCRIPT URL` calls every function of a client's script, as run.py does.

const main = async (script, url) => {
  const outcomes = {};
  for (const [name, check] of Object.entries(require(script))) {
    outcomes[name] = await check(url).then(() => null, (error) => error.stack);
  }
  console.log(JSON.stringify(outcomes));
};

main(...process.argv.slice(2));
